-- Create or change a principal, if its revision is still the one that was read.
-- KEYS  hash, set of all principals, [pointer of the new API key], pointers of the dropped API keys...
-- ARGV  revision read ('' = must not exist), principal id, 1 = a new key is given, field, value, ...
-- returns 1, or 0 where the principal has changed in the meantime
local rev = redis.call('HGET', KEYS[1], 'rev') or ''
if rev ~= ARGV[1] then return 0 end
local dropped_from = 3
if ARGV[3] == '1' then
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  redis.call('SET', KEYS[3], ARGV[2])
  dropped_from = 4
end
for i = dropped_from, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('DEL', KEYS[1])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SADD', KEYS[2], ARGV[2])
return 1
