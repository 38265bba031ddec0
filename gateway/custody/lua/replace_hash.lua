-- Replace a hash, if its revision is still the one that was read ('' = must not exist).
-- KEYS  hash    ARGV  revision read, field, value, ...
-- returns 1, or 0 where it has changed
if (redis.call('HGET', KEYS[1], 'rev') or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
