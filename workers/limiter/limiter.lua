-- Rate limiter of one credential and model: one call charges all limits or none.
-- KEYS   state (hash) · leases (sorted set: dispatch id → expiry) · costs (hash: dispatch id → time of its charge, tokens, images)
--        minutes · days (lists of time slots, from old to new: number, requests, tokens, images)
-- ARGV   operation · now in µs (0: the server's clock) · the operation's own arguments
-- A limit L over a window W is two rules. Sliding window: the charges of the last W and this request make at most L. Pace (GCRA):
-- a request goes when all charges before it, except half a second's worth, have drained at L/W. The window is strict; the pace only
-- spreads requests evenly. Times are whole µs, so sums are exact below 2^53.
local STATE, LEASES, COSTS = KEYS[1], KEYS[2], KEYS[3]
local MINUTE, HOUR, DAY, SECOND = 6e7, 3.6e9, 8.64e10, 1e6
local LATE = SECOND / 2 -- of a call after its admission: with it, the upstream's window holds too
local AHEAD = SECOND / 2
local ALIKE = 3 * SECOND / 2 -- tolerance between two counts of the same minute: calls under way, and the edges of the windows
local KEEP_S = 26 * 3600 -- longer than the longest window
local MAX_WINDOW = 10000
local NEVER = math.huge
local CANARIES = 16 -- jobs tried after the second pause in a row, before the next pause
local PROBE = MINUTE -- a job that exceeds a learned limit blocks other such jobs for this time, unless it is answered
-- pace_: when all charges have drained (GCRA's theoretical arrival time, TAT). up_: the TAT of the upstream's token bucket, as known.
-- drains_: until when the upstream is known to use a token bucket. minutes, days: one tally each, as text. cut: last halving.
-- streak: pauses in a row without an answered call; paused: start of the last one; canaries: jobs still to be tried before the next
-- pause. confirmed: when an answer last confirmed the learned limits; probe, probed: the job that tries to exceed one, and since when.
local FIELDS = {
  'n', 'rpm', 'tpm', 'ipm', 'rpd', 'cap', 'lrpm', 'ltpm', 'win', 'cut', 'cool', 'cool_us', 'lease_us',
  'streak', 'paused', 'canaries', 'confirmed', 'probe', 'probed',
  'pace_rpm', 'pace_tpm', 'pace_ipm', 'up_rpm', 'up_tpm', 'drains_rpm', 'drains_tpm', 'minutes', 'days',
}
local MINUTES = { name = 'minutes', list = KEYS[4], slot = SECOND / 10, window = MINUTE + LATE }
local DAYS = { name = 'days', list = KEYS[5], slot = 5 * MINUTE, window = DAY + LATE }
local TALLIES = { MINUTES, DAYS }
-- unit: its index in {requests, tokens, images}
local GATES = {
  { name = 'rpm', unit = 1, tally = MINUTES, pace = 'pace_rpm', learned = 'lrpm', mirror = 'up_rpm', drains = 'drains_rpm' },
  { name = 'tpm', unit = 2, tally = MINUTES, pace = 'pace_tpm', learned = 'ltpm', mirror = 'up_tpm', drains = 'drains_tpm' },
  { name = 'ipm', unit = 3, tally = MINUTES, pace = 'pace_ipm' },
  { name = 'rpd', unit = 1, tally = DAYS },
}
local s, was, live = {}, {}, 0

local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * SECOND + time[2]
end

local function units_of(text)
  local slot, requests, tokens, images = string.match(text, '(%d+) (%d+) (%d+) (%d+)')
  return { tonumber(requests), tonumber(tokens), tonumber(images) }, tonumber(slot)
end

local function text_of(units, slot) return string.format('%.0f %.0f %.0f %.0f', slot, unpack(units)) end

local function add(to, units, times)
  for i = 1, 3 do to[i] = to[i] + times * units[i] end
end

-- A tally counts the charges within the window even without a limit, so that a new limit is exact at once. sum: all charges;
-- open: the newest time slot, which is appended to the list when the next one begins.

local function slot_at(tally, at) return math.floor(at / tally.slot) end

-- A time slot counts until its last µs has left the window: at most one slot too long.
local function falls_out(tally, slot) return (slot + 1) * tally.slot + tally.window end

local function slot_in(tally, index)
  local text = redis.call('LINDEX', tally.list, index)
  if text then return units_of(text) end
end

local function count(tally, units, at)
  local slot = math.max(slot_at(tally, at), tally.newest)
  if slot > tally.newest and tally.open[1] > 0 then
    redis.call('RPUSH', tally.list, text_of(tally.open, tally.newest))
    redis.call('EXPIRE', tally.list, KEEP_S)
    tally.open = { 0, 0, 0 }
  end
  tally.newest = slot
  add(tally.open, units, 1)
  add(tally.sum, units, 1)
end

local function uncount(tally, units, at)
  local target, index = slot_at(tally, at), -1
  local counted, slot = tally.open, tally.newest
  while slot and slot > target do
    counted, slot = slot_in(tally, index)
    index = index - 1
  end
  -- After a step of the clock the charge may be in another slot.
  if slot ~= target or math.min(counted[1] - units[1], counted[2] - units[2], counted[3] - units[3]) < 0 then return end
  add(counted, units, -1)
  add(tally.sum, units, -1)
  if counted ~= tally.open then redis.call('LSET', tally.list, index + 1, text_of(counted, slot)) end
end

-- After a step back of the clock, charges in the future count as charges of now.
local function pull_back(tally)
  local here = slot_at(tally, now)
  if tally.newest <= here then return end
  tally.newest = here
  local units, slot = slot_in(tally, -1)
  while slot and slot >= here do
    add(tally.open, units, 1)
    redis.call('RPOP', tally.list)
    units, slot = slot_in(tally, -1)
  end
end

-- Returns false if the list was lost.
local function load_tally(tally)
  local open, sum = string.match(s[tally.name] or '', '(.+)|(.+)')
  if open then tally.open, tally.newest = units_of(open) end
  if not open or falls_out(tally, tally.newest) <= now then
    tally.open, tally.sum, tally.newest = { 0, 0, 0 }, { 0, 0, 0 }, 0
    redis.call('DEL', tally.list)
    return true
  end
  tally.sum = units_of(sum)
  local units, slot = slot_in(tally, 0)
  if not slot and tally.sum[1] > tally.open[1] then return false end
  while slot and falls_out(tally, slot) <= now do
    add(tally.sum, units, -1)
    redis.call('LPOP', tally.list)
    units, slot = slot_in(tally, 0)
  end
  return true
end

local function window_wait(g, asked)
  local excess, tally = g.tally.sum[g.unit] + asked - g.limit, g.tally
  if excess <= 0 then return 0 end
  local from, texts = 0, nil
  repeat
    texts = redis.call('LRANGE', tally.list, from, from + 31)
    for _, text in ipairs(texts) do
      local units, slot = units_of(text)
      excess = excess - units[g.unit]
      if excess <= 0 then return falls_out(tally, slot) - now end
    end
    from = from + 32
  until #texts < 32
  return falls_out(tally, tally.newest) - now
end

-- Leaky buckets: the pace, and the mirror of the upstream's token bucket.

local function price(units, limit) return math.ceil(units * MINUTE / limit) end

local function fill(tat, limit, units, at)
  if tat and limit and units > 0 then s[tat] = math.max(s[tat] or 0, at) + price(units, limit) end
end

-- Takes back only what cannot have drained yet: a charge begins to drain at its own time at the earliest.
local function drain(tat, limit, units, at)
  if not (limit and s[tat]) then return end
  local cost = price(units, limit)
  s[tat] = s[tat] - math.max(0, math.min(cost, at + cost - now))
end

local function know_limits()
  for _, g in ipairs(GATES) do g.limit = s[g.name] or s[g.learned] end
end

local function drop_expired()
  local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', string.format('%.0f', now))
  for _, id in ipairs(expired) do
    redis.call('ZREM', LEASES, id)
    redis.call('HDEL', COSTS, id)
  end
  live = live - #expired
end

-- After a step back of the clock no time lies further ahead than it could have been set now.
local function clamp()
  for _, tally in ipairs(TALLIES) do pull_back(tally) end
  for _, g in ipairs(GATES) do
    if s[g.pace] then s[g.pace] = math.min(s[g.pace], now + MINUTE + AHEAD) end
    if s[g.mirror] then s[g.mirror] = math.min(s[g.mirror], now + MINUTE) end
    if s[g.drains] then s[g.drains] = math.min(s[g.drains], now + HOUR) end
  end
  if s.cool then s.cool = math.min(s.cool, now + s.cool_us) end
  if live > 0 then
    local latest = string.format('%.0f', now + s.lease_us)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. latest, '+inf')) do
      redis.call('ZADD', LEASES, 'XX', latest, id)
    end
  end
end

-- Returns false if any part of the state was lost: the caller must rebuild it before it admits a job.
local function load()
  local raw = redis.call('HMGET', STATE, unpack(FIELDS))
  for i, field in ipairs(FIELDS) do
    s[field] = field ~= 'probe' and tonumber(raw[i]) or raw[i] ~= '' and raw[i] or nil
    was[field] = s[field]
  end
  live = redis.call('ZCARD', LEASES)
  local is_whole = s.n == live and redis.call('HLEN', COSTS) == live
  for _, tally in ipairs(TALLIES) do is_whole = load_tally(tally) and is_whole end
  if not is_whole then
    redis.call('DEL', unpack(KEYS))
    s, was, live = {}, {}, 0
    for _, tally in ipairs(TALLIES) do load_tally(tally) end
    return false
  end
  know_limits()
  clamp()
  drop_expired()
  return true
end

local function save()
  s.n = live
  for _, tally in ipairs(TALLIES) do
    s[tally.name] = text_of(tally.open, tally.newest) .. '|' .. text_of(tally.sum, 0)
  end
  local changed = {}
  for _, field in ipairs(FIELDS) do
    if s[field] ~= was[field] then
      changed[#changed + 1] = field
      changed[#changed + 1] = type(s[field]) == 'number' and string.format('%.17g', s[field]) or s[field] or ''
    end
  end
  if #changed > 0 then redis.call('HSET', STATE, unpack(changed)) end
  for _, key in ipairs({ STATE, LEASES, COSTS }) do redis.call('EXPIRE', key, KEEP_S) end
end

local function hold(id, lease_us)
  s.lease_us = math.max(s.lease_us, lease_us)
  redis.call('ZADD', LEASES, 'GT', string.format('%.0f', now + lease_us), id)
end

local function max_in_flight()
  local limit = math.min(s.cap or NEVER, s.win and math.floor(s.win) or NEVER)
  return (s.streak or 0) > 1 and math.min(limit, CANARIES) or limit
end

local function in_flight_wait()
  local limit = max_in_flight()
  if live < limit then return 0 end
  if limit < 1 then return NEVER end
  return redis.call('ZRANGE', LEASES, live - limit, live - limit, 'WITHSCORES')[2] - now
end

-- Whether a job larger than this limit may try it: the limit was learned, and no answer has confirmed it since the job was submitted.
local function may_exceed(g, since) return not s[g.name] and (s.confirmed or 0) < since end

-- Returns the longest wait in µs and the limit that causes it; 0 if all limits allow the request. NEVER: larger than the limit itself.
-- since: submit time of the job.
local function wait_for(units, in_flight_us, since)
  local wait, by = 0, ''
  local function needs(us, why)
    if us > wait then wait, by = us, why end
  end
  needs((s.cool or 0) - now, 'cooldown')
  needs(in_flight_us, 'in_flight')
  for _, g in ipairs(GATES) do
    local asked = units[g.unit]
    if g.limit and asked > g.limit then
      -- The learned limit is in doubt, so it delays only a second job that tries to exceed it.
      needs(may_exceed(g, since or 0) and (s.probed or -PROBE) + PROBE - now or NEVER, g.name)
    elseif asked > 0 then
      if g.limit then
        needs(window_wait(g, asked), g.name)
        needs((s[g.pace] or 0) - AHEAD - now, g.name)
      end
      if s[g.learned] then
        -- Half of the upstream's bucket is left to other clients of the credential; without them the pace denies first.
        needs((s[g.mirror] or 0) - now - math.max(AHEAD, MINUTE / 2 - price(asked, s[g.learned])), 'upstream')
      end
    end
  end
  return wait, by
end

local function denial(admitted, wait, by) return { admitted, wait == NEVER and -1 or math.ceil(wait / 1000), by } end

local function charge(id, units)
  for _, tally in ipairs(TALLIES) do count(tally, units, now) end
  for _, g in ipairs(GATES) do
    if g.limit and units[g.unit] > g.limit then s.probe, s.probed = id, now end
    fill(g.pace, g.limit, units[g.unit], now)
    fill(g.mirror, s[g.learned], units[g.unit], now)
  end
  -- Stores our counts of this minute with the charge: learn_limit compares them with the upstream's counts of the same call.
  redis.call('HSET', COSTS, id, text_of(units, now) .. string.format(' %.0f %.0f', MINUTES.sum[1], MINUTES.sum[2]))
end

local function paid_by(id) return units_of(redis.call('HGET', COSTS, id) or '') end

local function sums_when_paid(id)
  local requests, tokens = string.match(redis.call('HGET', COSTS, id) or '', '%d+ %d+ %d+ %d+ (%d+) (%d+)')
  return requests and { tonumber(requests), tonumber(tokens) }
end

local function refund(units, at)
  for _, tally in ipairs(TALLIES) do uncount(tally, units, at) end
  for _, g in ipairs(GATES) do
    drain(g.pace, g.limit, units[g.unit], at)
    drain(g.mirror, s[g.learned], units[g.unit], at)
  end
end

-- An upstream with a sliding minute, without other clients, has the same counts as we have: at the call's start or at its end.
-- An upstream that has counted clearly less uses a draining bucket; then an equal count is a coincidence of other clients' calls and ours.
local function is_all_ours(g, reset_us, paid)
  if not paid then return false end
  local before, after = price(paid[g.unit], s[g.learned]), price(g.tally.sum[g.unit], s[g.learned])
  local lowest, highest = math.min(before, after), math.max(before, after)
  if reset_us < lowest - 3 * ALIKE then s[g.drains] = now + HOUR end
  return (s[g.drains] or 0) <= now and reset_us >= lowest - ALIKE and reset_us <= highest + ALIKE
end

local function learn_limit(g, limit, reset_us, paid)
  local is_new = limit and limit ~= s[g.learned]
  if is_new then
    s[g.learned] = limit
    know_limits()
  end
  if reset_us and s[g.learned] and not is_all_ours(g, reset_us, paid) then
    s[g.mirror] = math.min(math.max(s[g.mirror] or 0, now + reset_us), now + MINUTE)
  end
  return is_new
end

local function cool_down(us)
  if now + us <= (s.cool or 0) then return false end
  s.cool, s.cool_us = now + us, us
  return true
end

-- AIMD: halves the window at most once a second, because all answers to one burst report the same overload.
local function cut_window(in_flight)
  if s.cut and s.cut <= now and now - s.cut < SECOND then return false end
  local before = s.win
  s.cut, s.win = now, math.max(1, math.min(s.win or NEVER, in_flight) / 2)
  return s.win ~= before
end

local function grow_window()
  if s.win then s.win = math.min(MAX_WINDOW, s.win + (s.cut and 1 / s.win or 1)) end
end

-- An answer to a call that left after the last pause began proves that the credential serves jobs other than the refused ones.
local function end_streak(at)
  if at and at > (s.paused or 0) then s.streak, s.canaries = nil, nil end
end

-- Pauses the credential and model after a refusal for load, unless the refusal belongs to the job alone. is_repeat: the job was refused
-- before. asked_us: the pause that the upstream asks for. Of calls that left together only one refusal counts. Returns whether the state
-- changed.
local function throttle(asked_us, is_repeat, at, base_us, max_us, jitter)
  if is_repeat and not s.streak then return false end -- other jobs were answered since: the refusal belongs to the job
  if at and at <= (s.paused or -1) then return cool_down(asked_us or 0) end
  if (s.canaries or 0) > 0 then
    s.canaries = s.canaries - 1
    return false
  end
  s.streak, s.paused = math.min((s.streak or 0) + 1, 32), now
  s.canaries = s.streak > 1 and CANARIES or nil
  local grown_us = math.min(base_us * 2 ^ (s.streak - 1), max_us) * (1 + jitter / 2)
  cool_down(math.floor(s.streak > 1 and math.max(asked_us or 0, grown_us) or asked_us or grown_us))
  return true
end

-- Ends the probe of a learned limit. If it was answered, the limit is dropped unless the answer states one. If it was refused, its tokens
-- are refunded, and a refusal for load or size confirms the limit. Other failures say nothing about the limit.
local function end_probe(id, was_good, is_stated, confirms, units, at)
  if s.probe ~= id then return false end
  s.probe, s.probed = nil, nil
  if not was_good then
    if confirms then s.confirmed = now end
    if at then refund({ 0, units[2], units[3] }, at) end
  elseif not is_stated then
    s.ltpm = nil
  end
  know_limits()
  return was_good and not is_stated
end

local function is_unknown() return not (GATES[1].limit or GATES[2].limit or s.cap) end

local function set_limits(first)
  for i, field in ipairs({ 'rpm', 'tpm', 'ipm', 'rpd', 'cap' }) do s[field] = tonumber(ARGV[first + i - 1]) end
  know_limits()
end

-- A group counts at its end, so it never leaves the window before its charges.
local function count_past(tally, first)
  local after = first + 1 + 4 * ARGV[first]
  for i = first + 1, after - 1, 4 do
    local at, units = math.min(ARGV[i], now), { tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]) }
    count(tally, units, at)
    for _, g in ipairs(GATES) do
      if g.tally == tally then fill(g.mirror, s[g.learned], units[g.unit], at) end
    end
  end
  return after
end

local function restore_leases(first)
  for i = first, #ARGV, 4 do
    local id, expiry = ARGV[i], tonumber(ARGV[i + 1])
    if expiry > now then
      hold(id, expiry - now)
      -- Charged at an unknown time, 0: it can be charged again and is never refunded.
      redis.call('HSET', COSTS, id, text_of({ 1, ARGV[i + 2], ARGV[i + 3] }, 0))
    end
  end
  live = redis.call('ZCARD', LEASES)
end

local operations = {}

function operations.admit() -- lease_us, then {id, tokens, images, submit time of the job} each
  local lease_us, admitted = tonumber(ARGV[3]), 0
  for i = 4, #ARGV, 4 do
    local id, units = ARGV[i], { 1, tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]) }
    if not redis.call('ZSCORE', LEASES, id) then
      local wait, by = wait_for(units, in_flight_wait(), tonumber(ARGV[i + 3]))
      if wait > 0 then return denial(admitted, wait, by) end
      charge(id, units)
      live = live + 1
    end
    hold(id, lease_us)
    admitted = admitted + 1
  end
  return { admitted, -1, '' }
end

function operations.charge_again() -- lease_us, id
  local id = ARGV[4]
  local units, at = paid_by(id)
  if not at then return { 0, -1, '' } end
  local wait, by = 0, ''
  if s.probe ~= id then wait, by = wait_for(units, 0) end
  if wait > 0 then return denial(0, wait, by) end
  charge(id, units)
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

-- id, sent, good, limit_requests, reset_requests_us, limit_tokens, reset_tokens_us, cooldown_us, pushed_back, throttled, is_repeat,
-- base_us, max_us, jitter, exceeds
function operations.release()
  local id, in_flight = ARGV[3], live
  local paid, units, at = sums_when_paid(id), paid_by(id)
  local is_good, is_held = ARGV[5] == '1', redis.call('ZREM', LEASES, id) == 1
  if is_held then
    if ARGV[4] == '0' then refund(units, at) end
    redis.call('HDEL', COSTS, id)
    live = live - 1
    if is_good then
      grow_window()
      end_streak(at)
    end
  end
  local changed, is_stated, asked_us = false, ARGV[6] ~= '' or ARGV[8] ~= '', tonumber(ARGV[10])
  for i = 1, 2 do
    if learn_limit(GATES[i], tonumber(ARGV[4 + 2 * i]), tonumber(ARGV[5 + 2 * i]), paid) then changed = true end
  end
  if is_good and is_stated then s.confirmed = now end
  local is_refuted = end_probe(id, is_good, is_stated, ARGV[12] == '1' or ARGV[17] == '1', units, ARGV[4] == '1' and at)
  local is_pushed = ARGV[11] == '1'
  if ARGV[12] == '1' then
    is_pushed = is_pushed and not (ARGV[13] == '1' and not s.streak)
    if throttle(asked_us, ARGV[13] == '1', at, tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])) then changed = true end
  elseif asked_us and cool_down(asked_us) then
    changed = true
  end
  if is_pushed and cut_window(in_flight) then changed = true end
  -- A window in slow start is not stored: once stored, it could only grow slowly.
  return {
    s.cut and math.floor(s.win) or -1, s.lrpm or -1, s.ltpm or -1, (s.cool or 0) > now and s.cool or 0,
    (changed or is_refuted) and 1 or 0, is_refuted and 1 or 0,
  }
end

function operations.peek()
  local wait = wait_for({ 1, 1, 1 }, in_flight_wait())
  local limit, share = max_in_flight(), (s.cool or 0) > now and 0 or 1
  for _, g in ipairs(GATES) do
    if g.limit then share = math.min(share, (g.limit - g.tally.sum[g.unit]) / g.limit) end
    if s[g.learned] then share = math.min(share, (now + MINUTE - (s[g.mirror] or 0)) / MINUTE) end
  end
  if limit < NEVER then share = math.min(share, limit > 0 and (limit - live) / limit or 0) end
  return {
    live, limit < NEVER and math.max(0, limit - live) or -1, math.ceil(math.min(wait, DAY) / 1000),
    string.format('%.6f', math.max(0, share)),
  }
end

function operations.configure() -- rpm, tpm, ipm, rpd, max_in_flight
  set_limits(3)
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

-- rpm, tpm, ipm, rpd, max_in_flight, learned rpm, learned tpm, window, cooldown until, then a counted list {at, requests, tokens,
-- images} of ten minutes, the same of a day, then {id, expiry, tokens, images} each. All in order of time.
function operations.init()
  s.lease_us = 0
  s.lrpm, s.ltpm = tonumber(ARGV[8]), tonumber(ARGV[9])
  set_limits(3)
  s.win = tonumber(ARGV[10])
  if s.win then s.cut = 0 elseif is_unknown() then s.win = 1 end
  if tonumber(ARGV[11]) > now then cool_down(tonumber(ARGV[11]) - now) end
  local rest = 12
  for _, tally in ipairs(TALLIES) do rest = count_past(tally, rest) end
  clamp()
  restore_leases(rest)
  return 1
end

-- Replies without state. A release still returns what the answer reports: the caller stores it, and the rebuild restores it.
local function without_state()
  if ARGV[1] == 'release' then
    local pause_us = tonumber(ARGV[10]) or ARGV[12] == '1' and tonumber(ARGV[14]) or 0
    local cool = pause_us > 0 and now + pause_us or 0
    local rpm, tpm = tonumber(ARGV[6]) or -1, tonumber(ARGV[8]) or -1
    return { -1, rpm, tpm, cool, (cool > 0 or rpm > 0 or tpm > 0) and 1 or 0, 0 }
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
