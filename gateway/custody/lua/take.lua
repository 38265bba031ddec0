-- Take one token from every bucket, or none from any.
-- KEYS  lock, bucket...    ARGV  1 = the lock counts, then for each bucket: tokens it holds, seconds to fill it
-- returns {0, 0}, or {milliseconds to wait, which key says so: 0 = the lock, else the bucket's place}
if ARGV[1] == '1' then
  local locked_ms = redis.call('PTTL', KEYS[1])
  if locked_ms > 0 then return {locked_ms, 0} end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local left, longest, which = {}, 0, 0
for i = 2, #KEYS do
  local count, period = tonumber(ARGV[2 * i - 2]), tonumber(ARGV[2 * i - 1])
  local state = redis.call('HMGET', KEYS[i], 'tokens', 'at')
  local tokens, at = tonumber(state[1] or count), tonumber(state[2] or now)
  tokens = math.min(count, tokens + math.max(0, now - at) * count / period)
  left[i] = tokens - 1
  local wait = math.ceil((1 - tokens) * period / count * 1000)
  if wait > longest then longest, which = wait, i - 1 end
end
if longest > 0 then return {longest, which} end
for i = 2, #KEYS do
  redis.call('HSET', KEYS[i], 'tokens', string.format('%.17g', left[i]), 'at', string.format('%.6f', now))
  redis.call('PEXPIRE', KEYS[i], math.ceil(tonumber(ARGV[2 * i - 1]) * 1000))
end
return {0, 0}
