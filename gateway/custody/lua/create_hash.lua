-- Write a hash that must not exist yet.
-- KEYS  hash    ARGV  field, value, ...
-- returns 1, or 0 where it exists
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
