-- Write the secret of a version that is not in use yet, if the key's revision is still the one that was read.
-- KEYS  metadata, secret, use of the key-encryption key    ARGV  revision read, key id/version, field, value, ...
-- returns 1, or 0 where the key has changed or is gone
if redis.call('HGET', KEYS[1], 'rev') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('SADD', KEYS[3], ARGV[2])
return 1
