-- Replace a key's metadata, if its revision is still the one that was read.
-- KEYS  metadata, expiry index    ARGV  revision read, key id, expiry, field, value, ...
-- returns 1, or 0 where the key has changed or is gone
if redis.call('HGET', KEYS[1], 'rev') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
return 1
