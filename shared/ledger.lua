-- The bytes that a principal has stored. `limits.lua` stands before.
--
-- KEYS[1]  "tf:limits:<principal>:"    ARGV  change, file, bytes, milliseconds it has to live, bytes allowed (0: any)
-- returns 0, or the milliseconds until there will be room

local k, change, file = KEYS[1], ARGV[1], ARGV[2]
local bytes, ttl, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local member = file .. ':' .. ARGV[3]
local now = instant()
local before = stored(k, now)

if change == 'drop' then
  if redis.call('ZREM', k .. 'files', member) == 1 then redis.call('DECRBY', k .. 'bytes', ARGV[3]) end
  return 0
end
if change == 'add' then
  if limit > 0 and before + bytes > limit then return math.ceil(wait_for_bytes(k, before + bytes - limit, now)) end
  if redis.call('ZADD', k .. 'files', 'NX', now + ttl, member) == 1 then redis.call('INCRBY', k .. 'bytes', ARGV[3]) end
else
  redis.call('ZADD', k .. 'files', 'XX', 'GT', now + ttl, member)
end
for _, key in ipairs({ k .. 'files', k .. 'bytes' }) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, math.ceil(ttl) + 1) end
end
return 0
