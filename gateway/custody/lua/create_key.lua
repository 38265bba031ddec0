-- Write a new key: metadata, first secret, indexes. Nothing of it may exist, and the id may never have been destroyed.
-- KEYS  metadata, secret, tombstone, expiry index, use of the key-encryption key
-- ARGV  key id, version, expiry, n = length of the metadata, n metadata fields and values, secret fields and values...
-- returns 1, or 0 where the id was used before
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3]) > 0 then return 0 end
local first, n = 5, tonumber(ARGV[4])
redis.call('HSET', KEYS[1], unpack(ARGV, first, first + n - 1))
redis.call('HSET', KEYS[2], unpack(ARGV, first + n))
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1] .. '/' .. ARGV[2])
return 1
