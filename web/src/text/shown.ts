// Numbers, times and sizes as people of this language write them.
import { language, say } from "../state/look";

const locale = (): string => (language.value === "zh" ? "zh-CN" : "en-GB");

export function clock(at: number, withSeconds = false): string {
  const options: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined };
  return new Date(at * 1000).toLocaleTimeString(locale(), options);
}

/** Today's as a time, others as a date. */
export function moment(at: number): string {
  const then = new Date(at * 1000);
  if (then.toDateString() === new Date().toDateString()) return clock(at);
  return then.toLocaleDateString(locale(), { month: "short", day: "numeric" });
}

export function span(s: number): string {
  if (s < 90) return say("seconds", { n: Math.max(1, Math.round(s)) });
  return s < 5_400 ? say("minutes", { n: Math.round(s / 60) }) : say("hours", { n: Math.round(s / 3_600) });
}

export function size(bytes: number): string {
  const units = ["byte", "kilobyte", "megabyte"];
  const step = bytes < 1_000 ? 0 : bytes < 1_000_000 ? 1 : 2;
  const style = { style: "unit", unit: units[step], maximumFractionDigits: step ? 1 : 0 } as const;
  return new Intl.NumberFormat(locale(), style).format(bytes / 1_000 ** step);
}

export const usd = (amount: number): string =>
  new Intl.NumberFormat(locale(), { style: "currency", currency: "USD", maximumFractionDigits: 4 }).format(amount);
export const count = (n: number): string => new Intl.NumberFormat(locale()).format(n);
