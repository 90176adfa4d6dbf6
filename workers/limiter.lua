-- What one credential may still do with one model: every limit is charged in one step, or none is.
-- KEYS   state (hash) · leases (sorted set: dispatch id → expiry) · costs (hash: dispatch id → what it paid)
-- ARGV   operation · now in µs (0: the server's clock) · the operation's own
-- Times are whole µs: sums are exact below 2^53. Costs and tolerances round up; since a window of W is half open (its two
-- ends are at most W−1 apart), rounding never admits more.
local STATE, LEASES, COSTS = KEYS[1], KEYS[2], KEYS[3]
local MINUTE, DAY, SECOND = 6e7, 8.64e10, 1e6
local HORIZON = 10 * MINUTE -- of the history that init folds
local KEEP_S = 26 * 3600 -- longer than the longest window
local MOST_WINDOW = 10000
local NEVER = math.huge
-- t_: when our own bucket is full again (TAT). u_: the same of the upstream's, as far as we know it. cut: last halving.
local FIELDS = {
  'n', 'seq', 'rpm', 'tpm', 'ipm', 'rpd', 'cap', 'lrpm', 'ltpm', 'win', 'cut', 'cool', 'cool_us', 'lease_us',
  't_rpm', 't_tpm', 't_ipm', 't_rpd', 'u_rpm', 'u_tpm',
}
local GATES = {
  { name = 'rpm', tat = 't_rpm', window = MINUTE, single = true, learned = 'lrpm', mirror = 'u_rpm' },
  { name = 'tpm', tat = 't_tpm', window = MINUTE, learned = 'ltpm', mirror = 'u_tpm' },
  { name = 'ipm', tat = 't_ipm', window = MINUTE },
  { name = 'rpd', tat = 't_rpd', window = DAY, single = true },
}
local s, was, live = {}, {}, 0

local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * SECOND + time[2]
end

local function price(g, units) return math.ceil(units * g.window / g.spare) end

-- Rate (L−b)/W and burst b: no window of W ever sees more than L. L = 1 leaves no rate: one each W.
local function shape()
  for _, g in ipairs(GATES) do
    g.limit = s[g.name] or (g.learned and s[g.learned])
    if g.limit then
      local burst = math.max(1, g.window == DAY and g.limit / 2 or g.limit / 120)
      g.spare = g.limit > burst and g.limit - burst or 1
      g.slack = math.ceil(g.window * burst / g.spare)
      -- Rounded up one by one, a burst of single requests costs a little more; it shall still go at once.
      if g.single then g.slack = math.max(g.slack, math.floor(burst) * price(g, 1)) end
    end
  end
end

local function mirror_price(g, units) return math.ceil(units * MINUTE / s[g.learned]) end

local function units_of(tokens, images) return { rpm = 1, tpm = tokens, ipm = images, rpd = 1 } end

local function drop_expired()
  local gone = redis.call('ZRANGEBYSCORE', LEASES, '-inf', string.format('%.0f', now))
  for _, id in ipairs(gone) do
    redis.call('ZREM', LEASES, id)
    redis.call('HDEL', COSTS, id)
  end
  live = live - #gone
end

-- After a step back of the clock nothing lies further ahead than it could have been put there today.
local function clamp()
  for _, g in ipairs(GATES) do
    if g.limit then s[g.tat] = math.min(s[g.tat] or 0, now + g.window + g.slack + 1) end
    if g.mirror and s[g.mirror] then s[g.mirror] = math.min(s[g.mirror], now + MINUTE) end
  end
  if s.cool then s.cool = math.min(s.cool, now + s.cool_us) end
  if live > 0 then
    local latest = string.format('%.0f', now + s.lease_us)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. latest, '+inf')) do
      redis.call('ZADD', LEASES, 'XX', latest, id)
    end
  end
end

-- False when any of it was lost: whoever asked must rebuild before a single job is let through.
local function load()
  local raw = redis.call('HMGET', STATE, unpack(FIELDS))
  for i, field in ipairs(FIELDS) do
    s[field] = tonumber(raw[i])
    was[field] = s[field]
  end
  live = redis.call('ZCARD', LEASES)
  if s.n ~= live or redis.call('HLEN', COSTS) ~= live then
    redis.call('DEL', STATE, LEASES, COSTS)
    s, was, live = {}, {}, 0
    return false
  end
  shape()
  clamp()
  drop_expired()
  return true
end

local function save()
  s.n = live
  local changed = {}
  for _, field in ipairs(FIELDS) do
    if s[field] ~= was[field] then
      changed[#changed + 1] = field
      changed[#changed + 1] = s[field] and string.format('%.17g', s[field]) or ''
    end
  end
  if #changed > 0 then redis.call('HSET', STATE, unpack(changed)) end
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, KEEP_S) end
end

local function touch() s.seq = s.seq + 1 end

local function hold(id, lease_us)
  s.lease_us = math.max(s.lease_us, lease_us)
  redis.call('ZADD', LEASES, 'GT', string.format('%.0f', now + lease_us), id)
end

local function seats() return math.min(s.cap or NEVER, s.win and math.floor(s.win) or NEVER) end

local function seat_wait()
  local most = seats()
  if live < most then return 0 end
  if most < 1 then return NEVER end
  return redis.call('ZRANGE', LEASES, live - most, live - most, 'WITHSCORES')[2] - now
end

-- The longest wait in µs and the limit that causes it; 0 when all allow. NEVER: larger than the limit itself.
-- The wait is taken from the unclamped TAT: asks larger than the burst go on saved credit, then leave a debt.
local function wait_for(units, seat_us)
  local wait, by = 0, ''
  local function needs(us, why)
    if us > wait then wait, by = us, why end
  end
  needs((s.cool or 0) - now, 'cooldown')
  needs(seat_us, 'in_flight')
  for _, g in ipairs(GATES) do
    local asked = units[g.name]
    if g.limit and asked > 0 then
      needs(asked > g.limit and NEVER or s[g.tat] + price(g, asked) - g.slack - now, g.name)
    end
    if g.mirror and asked > 0 and s[g.learned] then
      -- Half of the upstream's bucket is left to whoever else uses the key.
      needs((s[g.mirror] or 0) - now - math.max(0, MINUTE / 2 - mirror_price(g, asked)), 'upstream')
    end
  end
  return wait, by
end

local function denial(admitted, wait, by) return { admitted, wait == NEVER and -1 or math.ceil(wait / 1000), by } end

-- The record holds what a refund needs: number of this change, time, tokens, images, then per gate TAT before, cost, mirror's cost.
local function charge(id, tokens, images)
  local units = units_of(tokens, images)
  touch()
  local paid = { s.seq, now, tokens, images }
  for _, g in ipairs(GATES) do
    local asked, before, cost, mirrored = units[g.name], s[g.tat] or 0, 0, 0
    if g.limit and asked > 0 then
      cost = price(g, asked)
      s[g.tat] = math.max(before, now) + cost
    end
    if g.mirror and asked > 0 and s[g.learned] then
      mirrored = mirror_price(g, asked)
      s[g.mirror] = math.max(s[g.mirror] or 0, now) + mirrored
    end
    paid[#paid + 1], paid[#paid + 2], paid[#paid + 3] = before, cost, mirrored
  end
  for i, number in ipairs(paid) do paid[i] = string.format('%.0f', number) end
  redis.call('HSET', COSTS, id, table.concat(paid, ' '))
end

local function paid_by(id)
  local paid = {}
  for number in string.gmatch(redis.call('HGET', COSTS, id) or '', '%S+') do paid[#paid + 1] = tonumber(number) end
  return paid
end

-- If nothing was charged since, all is as before. Otherwise only what cannot have drained yet goes back: a charge begins to
-- drain at its own time at the earliest, so the result is never lower than if it had never been made.
local function refund(paid)
  if not paid[1] or paid[1] < 0 then return end
  local untouched = paid[1] == s.seq
  local function back(cost) return math.min(cost, math.max(0, paid[2] + cost - now)) end
  for i, g in ipairs(GATES) do
    local before, cost, mirrored = paid[3 * i + 2], paid[3 * i + 3], paid[3 * i + 4]
    if cost > 0 then s[g.tat] = untouched and before or (s[g.tat] or 0) - back(cost) end
    if mirrored > 0 then s[g.mirror] = (s[g.mirror] or 0) - back(mirrored) end
  end
  touch()
end

-- A limit that was open has no history: no credit is assumed.
local function no_credit(closed)
  for _, g in ipairs(GATES) do
    if g.limit and closed[g.name] then s[g.tat] = math.max(s[g.tat] or 0, now) end
  end
  touch()
end

local function open_gates()
  local open = {}
  for _, g in ipairs(GATES) do open[g.name] = not g.limit end
  return open
end

local function learn_limit(g, limit, reset_us)
  local news = limit and limit ~= s[g.learned]
  if news then
    local open = open_gates()
    s[g.learned] = limit
    shape()
    no_credit(open)
  end
  if reset_us and s[g.learned] then s[g.mirror] = math.min(math.max(s[g.mirror] or 0, now + reset_us), now + MINUTE) end
  return news
end

local function cool_down(us)
  if now + us <= (s.cool or 0) then return false end
  s.cool, s.cool_us = now + us, us
  return true
end

-- AIMD, at most once a second: the answers to one burst all say the same.
local function cut_window(flying)
  if s.cut and s.cut <= now and now - s.cut < SECOND then return false end
  local before = s.win
  s.cut, s.win = now, math.max(1, math.min(s.win or NEVER, flying) / 2)
  return s.win ~= before
end

local function grow_window()
  if s.win then s.win = math.min(MOST_WINDOW, s.win + (s.cut and 1 / s.win or 1)) end
end

local function is_unknown() return not (GATES[1].limit or GATES[2].limit or s.cap) end

local function set_limits(first)
  for i, field in ipairs({ 'rpm', 'tpm', 'ipm', 'rpd', 'cap' }) do s[field] = tonumber(ARGV[first + i - 1]) end
  shape()
end

-- From the emptiest bucket that the horizon can have left. A group lies at its end, and no admission can leave the TAT
-- further ahead than the burst or its own debt: the result is never looser than what was lost, and not much tighter.
local function fold(g, groups, from)
  local tat = from
  for _, p in ipairs(groups) do
    local at, asked = math.min(p.at, now), p[g.name]
    if asked > 0 then
      local cost = g.single and asked * price(g, 1) or price(g, asked) + p.rpm
      tat = math.min(math.max(tat, at) + cost, at + math.max(g.slack, g.single and 0 or cost))
    end
  end
  return tat
end

local function fold_mirror(g, groups)
  local up = 0
  for _, p in ipairs(groups) do
    if p[g.name] > 0 then up = math.max(up, math.min(p.at, now)) + mirror_price(g, p[g.name]) end
  end
  return math.min(up, now + MINUTE)
end

local function groups_from(first, horizon)
  local groups, count = {}, tonumber(ARGV[first])
  for i = first + 1, first + 4 * count, 4 do
    local at, requests = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    if at > horizon then
      groups[#groups + 1] = { at = at, rpm = requests, rpd = requests, tpm = tonumber(ARGV[i + 2]), ipm = tonumber(ARGV[i + 3]) }
    end
  end
  return groups, first + 1 + 4 * count
end

local function restore_leases(first)
  for i = first, #ARGV, 4 do
    local id, expiry = ARGV[i], tonumber(ARGV[i + 1])
    if expiry > now then
      hold(id, expiry - now)
      -- Charged at an unknown time: payable again, never refunded.
      redis.call('HSET', COSTS, id, '-1 0 ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3] .. ' 0 0 0 0 0 0 0 0 0 0 0 0')
    end
  end
  live = redis.call('ZCARD', LEASES)
end

local operations = {}

function operations.admit() -- lease_us, then {id, tokens, images} each
  local lease_us, admitted = tonumber(ARGV[3]), 0
  for i = 4, #ARGV, 3 do
    local id, tokens, images = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    if not redis.call('ZSCORE', LEASES, id) then
      local wait, by = wait_for(units_of(tokens, images), seat_wait())
      if wait > 0 then return denial(admitted, wait, by) end
      charge(id, tokens, images)
      live = live + 1
    end
    hold(id, lease_us)
    admitted = admitted + 1
  end
  return { admitted, -1, '' }
end

function operations.charge_again() -- lease_us, id
  local id = ARGV[4]
  local tokens, images = unpack(paid_by(id), 3, 4)
  if not tokens then return { 0, -1, '' } end
  local wait, by = wait_for(units_of(tokens, images), 0)
  if wait > 0 then return denial(0, wait, by) end
  charge(id, tokens, images)
  hold(id, tonumber(ARGV[3]))
  return { 1, -1, '' }
end

function operations.renew() -- lease_us, ids
  local held = {}
  for i = 4, #ARGV do
    if redis.call('ZSCORE', LEASES, ARGV[i]) then
      hold(ARGV[i], tonumber(ARGV[3]))
      held[#held + 1] = ARGV[i]
    end
  end
  return held
end

function operations.release() -- id, sent, good, limit_requests, reset_requests_us, limit_tokens, reset_tokens_us, cooldown_us, pushed_back
  local id, flying, paid = ARGV[3], live, paid_by(ARGV[3])
  if redis.call('ZREM', LEASES, id) == 1 then
    redis.call('HDEL', COSTS, id)
    live = live - 1
    if ARGV[4] == '0' then refund(paid) end
    if ARGV[5] == '1' then grow_window() end
  end
  local changed = false
  for i = 1, 2 do
    if learn_limit(GATES[i], tonumber(ARGV[4 + 2 * i]), tonumber(ARGV[5 + 2 * i])) then changed = true end
  end
  if ARGV[10] ~= '' and cool_down(tonumber(ARGV[10])) then changed = true end
  if ARGV[11] == '1' and cut_window(flying) then changed = true end
  -- A window that still starts slowly is not worth keeping: stored, it would only ever grow slowly.
  return { s.cut and math.floor(s.win) or -1, s.lrpm or -1, s.ltpm or -1, (s.cool or 0) > now and s.cool or 0, changed and 1 or 0 }
end

function operations.peek()
  local wait = wait_for({ rpm = 1, tpm = 1, ipm = 1, rpd = 1 }, seat_wait())
  local most, share = seats(), (s.cool or 0) > now and 0 or 1
  for _, g in ipairs(GATES) do
    if g.limit then share = math.min(share, (now + g.slack - s[g.tat]) / (g.window + g.slack)) end
    if g.mirror and s[g.learned] then share = math.min(share, (now + MINUTE - (s[g.mirror] or 0)) / MINUTE) end
  end
  if most < NEVER then share = math.min(share, most > 0 and (most - live) / most or 0) end
  return {
    live, most < NEVER and math.max(0, most - live) or -1, math.ceil(math.min(wait, DAY) / 1000),
    string.format('%.6f', math.max(0, share)),
  }
end

function operations.configure() -- rpm, tpm, ipm, rpd, max_in_flight
  local open = open_gates()
  set_limits(3)
  no_credit(open)
  if is_unknown() then
    s.win = s.win or 1
  elseif not s.cut then
    s.win = nil
  end
  return 1
end

function operations.pause() -- us
  cool_down(tonumber(ARGV[3]))
  return 1
end

function operations.unpause()
  s.cool, s.cool_us = nil, nil
  return 1
end

-- rpm, tpm, ipm, rpd, max_in_flight, learned rpm, learned tpm, window, cooldown until, then counted {at, requests, tokens,
-- images} of ten minutes, the same of a day, then {id, expiry, tokens, images} each. All in order of time.
function operations.init()
  redis.call('DEL', LEASES, COSTS)
  s.seq, s.lease_us = 0, 0
  s.lrpm, s.ltpm = tonumber(ARGV[8]), tonumber(ARGV[9])
  set_limits(3)
  s.win = tonumber(ARGV[10])
  if s.win then s.cut = 0 elseif is_unknown() then s.win = 1 end
  if tonumber(ARGV[11]) > now then cool_down(tonumber(ARGV[11]) - now) end
  local past, after = groups_from(12, now - HORIZON)
  local day, rest = groups_from(after, now - DAY)
  for _, g in ipairs(GATES) do
    if g.limit and g.window == DAY then s[g.tat] = fold(g, day, now - DAY + g.slack) end
    if g.limit and g.window == MINUTE then s[g.tat] = fold(g, past, now - HORIZON + MINUTE + g.slack) end
    if g.mirror and s[g.learned] then s[g.mirror] = fold_mirror(g, past) end
  end
  restore_leases(rest)
  return 1
end

-- What an answer taught is not lost with the state: the caller stores it, and the rebuild brings it back.
local function without_state()
  if ARGV[1] == 'release' then
    local cool = ARGV[10] ~= '' and now + tonumber(ARGV[10]) or 0
    local rpm, tpm = tonumber(ARGV[6]) or -1, tonumber(ARGV[8]) or -1
    return { -1, rpm, tpm, cool, (cool > 0 or rpm > 0 or tpm > 0) and 1 or 0 }
  end
  if ARGV[1] == 'admit' or ARGV[1] == 'charge_again' then return { 0, 0, 'no_state' } end
  if ARGV[1] == 'renew' then return {} end
  return ARGV[1] ~= 'peek' and 0
end

local known = load()
if not known and ARGV[1] ~= 'init' then return without_state() end
local reply = 0
if not known or ARGV[1] ~= 'init' then reply = operations[ARGV[1]]() end
save()
return reply
