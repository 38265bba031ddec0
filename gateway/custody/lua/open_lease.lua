-- Write a lease, which Redis drops when nothing can need it any more.
-- KEYS  lease    ARGV  milliseconds to keep it, field, value, ...
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
