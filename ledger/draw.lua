-- One draw: what a node of the fleet asks of one account's limits. See ledger/fleet.py.
--
-- KEYS  one for each rights ask, then one for each slots ask, all on one hash tag
-- ARGV  the time in microseconds ('' for the server's own), holder, number of the draw, count of
--       rights asks, units per right, milliseconds that slots last without renewal;
--       limit, least, most, returned for each rights ask;
--       limit, running, least, most for each slots ask
-- Returns granted and level for each rights ask, held and others for each slots ask.
--
-- Nothing is consumed unless every ask gets its least. What is returned or running counts anyway.
-- Rights are a hash {level, at}; slots a hash holder -> "slots expires draw".

local LEVEL_MAX = 9000000000000000 -- below 2^53, up to which numbers are exact
local KEEP_MAX = 3600000           -- milliseconds; a debt of hours is forgotten after one
local SPARE = 60000                -- milliseconds; keys expire by a clock that `now` need not follow

-- Numbers that become text keep all their digits.
local function integer(number) return string.format('%.0f', number) end

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local holder, draw, rights = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local UNITS, EXPIRY = tonumber(ARGV[5]), tonumber(ARGV[6])

-- First read, and decide whether everything fits.
local fits, asks = true, {}
for i, key in ipairs(KEYS) do
  local a, b, c, d = unpack(ARGV, 4 * i + 3, 4 * i + 6)
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  if i <= rights then
    local ask = {limit = a, least = b, most = c}
    local stored = redis.call('HMGET', key, 'level', 'at')
    local level, at = tonumber(stored[1] or '0'), tonumber(stored[2] or '0')
    local flown = math.max(now - at, 0) * ask.limit
    level = math.max(level - flown, 0) - d * UNITS
    ask.level = math.min(math.max(level, 0), LEVEL_MAX)
    ask.at = math.max(now, at)
    ask.room = math.floor((ask.limit * UNITS - ask.level) / UNITS)
    fits = fits and (ask.least == 0 or ask.least <= ask.room)
    asks[i] = ask
  else
    local ask = {limit = a, running = b, least = c, most = d, mine = 0, others = 0, gone = {}}
    local stored = redis.call('HGETALL', key)
    for j = 1, #stored, 2 do
      local slots, expires, number = string.match(stored[j + 1], '^(%d+) (%d+) (%d+)$')
      slots, expires, number = tonumber(slots), tonumber(expires), tonumber(number)
      if stored[j] == holder and number >= draw then
        return redis.error_reply('FAREBOX a later draw of this holder was here before')
      elseif expires <= now then
        table.insert(ask.gone, stored[j])
      elseif stored[j] == holder then
        ask.mine = slots
      else
        ask.others = ask.others + slots
      end
    end
    fits = fits and (ask.least <= ask.mine or ask.least <= ask.limit - ask.others)
    asks[i] = ask
  end
end

-- Then write.
local reply = {}
for i, key in ipairs(KEYS) do
  local ask = asks[i]
  if i <= rights then
    local granted = 0
    if fits then granted = math.max(ask.least, math.min(ask.most, ask.room), 0) end
    local level = ask.level + granted * UNITS
    if level > 0 then
      redis.call('HSET', key, 'level', integer(level), 'at', integer(ask.at))
      local keep = math.ceil(level / ask.limit / 1000) + SPARE
      redis.call('PEXPIRE', key, integer(math.min(keep, KEEP_MAX)))
    else
      redis.call('DEL', key)
    end
    table.insert(reply, granted)
    table.insert(reply, level)
  else
    local held
    if fits then
      held = math.max(ask.least, math.min(ask.most, ask.limit - ask.others))
    else
      held = math.min(ask.mine, ask.most)
    end
    held = math.max(held, ask.running)
    for _, other in ipairs(ask.gone) do redis.call('HDEL', key, other) end
    if held > 0 then
      local value = integer(held) .. ' ' .. integer(now + EXPIRY * 1000) .. ' ' .. integer(draw)
      redis.call('HSET', key, holder, value)
      redis.call('PEXPIRE', key, EXPIRY)
    else
      redis.call('HDEL', key, holder)
    end
    table.insert(reply, held)
    table.insert(reply, ask.others)
  end
end
return reply
