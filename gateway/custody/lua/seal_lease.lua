-- Reserve the record of a unit for one draft, if its faces are those that were redeemed in this attempt.
-- KEYS  lease, its use    ARGV  unit, attempt, digest of what was redeemed ('' = no face), digest of the draft
-- returns 'ok' (also for the same draft again), or what stands against it
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
local unit, attempt = ARGV[1], tonumber(ARGV[2])
local newest = tonumber(redis.call('HGET', KEYS[2], 'attempt:' .. unit) or 0)
if ARGV[3] ~= '' then
  if attempt ~= newest then return 'stale' end
  if redis.call('HGET', KEYS[2], 'digest:' .. unit) ~= ARGV[3] then return 'other' end
elseif attempt < newest then
  return 'stale'
end
local sealed = tonumber(redis.call('HGET', KEYS[2], 'sealed:' .. unit) or 0)
if attempt < sealed then return 'stale' end
if attempt == sealed and redis.call('HGET', KEYS[2], 'draft:' .. unit) ~= ARGV[4] then return 'other' end
redis.call('HSET', KEYS[2], 'sealed:' .. unit, attempt, 'draft:' .. unit, ARGV[4])
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 'ok'
