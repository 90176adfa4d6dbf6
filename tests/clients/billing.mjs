// The billing requests of NextChat and ChatGPT-Web: the month as two dates, and the numbers parsed as these apps do.
const [base, key] = process.argv.slice(2);
const get = async (path) => (await fetch(`${base}/dashboard/billing/${path}`, { headers: { Authorization: `Bearer ${key}` } })).json();

const day = (date) => date.toISOString().slice(0, 10);
const now = new Date();
const month = `start_date=${day(new Date(now.getFullYear(), now.getMonth(), 1))}&end_date=${day(new Date(Date.now() + 86400_000))}`;
const [used, ever, subscription, grants] = await Promise.all(
  [`usage?${month}`, "usage", "subscription", "credit_grants"].map(get),
);
const show = (cents) => Math.round(cents) / 100;
console.log(
  JSON.stringify({
    nextchat: { used: show(used.total_usage), total: Math.round(subscription.hard_limit_usd * 100) / 100, pays: subscription.has_payment_method },
    chatgptWeb: show(ever.total_usage),
    older: [grants.total_granted, grants.total_used, grants.total_available].map((usd) => usd.toFixed(2)),
  }),
);
