-- What a principal has used of its limits, and how long a queue is. Put before every script that asks (shared/limits.py).
--
-- <k> is "tf:limits:<principal>:". A limit of 0 is no limit. Times are milliseconds of the server's clock, with fraction.
--
-- <k>requests  string  when the whole quota of requests is there again    <k>pixels  string  the same for pixels
-- <k>jobs      set     the principal's unfinished jobs, of all methods: written where a job begins and ends (jobs.lua)
-- <k>files     zset    "<file>:<bytes>" of what it stored, by expiry      <k>bytes   string  their sum

local MINUTE_MS, HOUR_MS = 60000, 3600000
local SLACK_MS = 0.001 -- what adding and subtracting loses of a time in milliseconds since 1970
local LIVE_MS = 20000 -- a worker without a heartbeat for longer is gone
local GUESS_MS = 5000 -- a job's time where none was finished yet
local PRUNED_AT_ONCE = 1000

local function instant()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + clock[2] / 1000
end

-- The generic cell rate algorithm: `quota` units at once, and as many again evenly over `window`.

local function backlog(key, now)
  return math.max(0, tonumber(redis.call('GET', key) or '0') - now)
end

-- until `cost` units may be taken; what costs more than the whole quota waits for the whole quota, and is owed
local function wait_for(key, quota, window, cost, now)
  local wait = backlog(key, now) + math.min(cost, quota) * window / quota - window
  return wait > SLACK_MS and wait or 0
end

local function take(key, quota, window, cost, now)
  local owed = backlog(key, now) + cost * window / quota
  redis.call('SET', key, string.format('%.17g', now + owed), 'PX', math.ceil(owed) + 1)
end

-- whole units that are there, and the time until there is one more
local function left(key, quota, window, now)
  local owed = backlog(key, now)
  local units = math.floor((window - owed + SLACK_MS) * quota / window)
  units = math.max(0, math.min(quota, units))
  return units, units == quota and window / quota or owed + (units + 1) * window / quota - window
end

-- Bytes: what expired is forgotten on the way.

local function file_bytes(member)
  return tonumber(string.match(member, ':(%d+)$'))
end

local function stored(k, now)
  local over = redis.call('ZRANGEBYSCORE', k .. 'files', '-inf', now, 'LIMIT', 0, PRUNED_AT_ONCE)
  if #over > 0 then
    local sum = 0
    for _, member in ipairs(over) do sum = sum + file_bytes(member) end
    redis.call('ZREM', k .. 'files', unpack(over))
    redis.call('DECRBY', k .. 'bytes', string.format('%.0f', sum))
  end
  if redis.call('EXISTS', k .. 'files') == 0 then
    redis.call('DEL', k .. 'bytes')
    return 0
  end
  return tonumber(redis.call('GET', k .. 'bytes') or '0')
end

-- until `needed` bytes have expired
local function wait_for_bytes(k, needed, now)
  local by_expiry = redis.call('ZRANGE', k .. 'files', 0, PRUNED_AT_ONCE - 1, 'WITHSCORES')
  local until_ = now
  for i = 1, #by_expiry, 2 do
    if needed <= 0 then break end
    needed, until_ = needed - file_bytes(by_expiry[i]), tonumber(by_expiry[i + 1])
  end
  return math.max(1, until_ - now)
end

-- Queues. <p> is "tf:<method>:", <line> '' for what is computed and '.train' for trainings. By Little's law as many jobs
-- leave a queue in a mean time of service as are in service at once.

local function service(p, line, now)
  local mean = tonumber(redis.call('HGET', p .. 'stats', 'recent_ms' .. line))
  local workers = redis.call('ZCOUNT', p .. 'workers', now - LIVE_MS, '+inf')
  return mean, math.max(redis.call('ZCARD', p .. 'active' .. line), workers, 1)
end

-- how long a job that is queued now will wait; 0 while nothing is known of the time that jobs take
local function queue_wait(p, line, now)
  local mean, at_once = service(p, line, now)
  return redis.call('ZCARD', p .. 'queued' .. line) * (mean or 0) / at_once
end

-- until one of a principal's jobs is likely to end, if it has its share of those in the queue
local function wait_for_job(k, p, line, now)
  local mean, at_once = service(p, line, now)
  local unfinished = redis.call('ZCARD', p .. 'queued' .. line) + redis.call('ZCARD', p .. 'active' .. line)
  local share = math.max(1, unfinished / math.max(1, redis.call('SCARD', k .. 'jobs')))
  return math.max(1, share * (mean or GUESS_MS) / at_once)
end

