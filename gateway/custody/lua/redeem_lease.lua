-- Count one redeem of a unit, if the lease has not used up its number and the key is still as it was read.
-- KEYS  lease, its use, metadata of the key
-- ARGV  revision of the key that was read, unit, attempt, digest of what is asked for, faces,
--       most redeems a unit, most units, most faces
-- returns 'ok', or what stands against it
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HGET', KEYS[3], 'rev') ~= ARGV[1] then return 'changed' end
local unit, attempt = ARGV[2], tonumber(ARGV[3])
local redeems = tonumber(redis.call('HGET', KEYS[2], 'redeems:' .. unit) or 0)
if redeems >= tonumber(ARGV[6]) then return 'used_up' end
local newest = tonumber(redis.call('HGET', KEYS[2], 'attempt:' .. unit) or 0)
if attempt < newest then return 'stale' end
local asked = redis.call('HGET', KEYS[2], 'digest:' .. unit)
if attempt == newest then
  if asked ~= ARGV[4] then return 'other' end
else
  local units = tonumber(redis.call('HGET', KEYS[2], 'units') or 0) + (redeems == 0 and 1 or 0)
  local faces = tonumber(redis.call('HGET', KEYS[2], 'faces') or 0) + tonumber(ARGV[5])
  if units > tonumber(ARGV[7]) then return 'units' end
  if faces > tonumber(ARGV[8]) then return 'faces' end
  redis.call('HSET', KEYS[2], 'units', units, 'faces', faces, 'attempt:' .. unit, attempt, 'digest:' .. unit, ARGV[4])
end
redis.call('HINCRBY', KEYS[2], 'redeems:' .. unit, 1)
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 'ok'
