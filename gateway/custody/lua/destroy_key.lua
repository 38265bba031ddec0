-- Delete a key with all its secrets, if its revision is still the one that was read.
-- KEYS  metadata, tombstone, expiry index, n secrets (version 1 first), n uses of key-encryption keys
-- ARGV  revision read, key id, text of the tombstone ('' = none), n
-- returns 1, or 0 where the key has changed or is gone
if redis.call('HGET', KEYS[1], 'rev') ~= ARGV[1] then return 0 end
local n = tonumber(ARGV[4])
for version = 1, n do
  redis.call('DEL', KEYS[3 + version])
  redis.call('SREM', KEYS[3 + n + version], ARGV[2] .. '/' .. version)
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
return 1
