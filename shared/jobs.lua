-- Every change of a job, each in one step, so that no two processes can disagree about it. `limits.lua` stands before.
--
-- KEYS[1]  prefix of the method's keys, "tf:<method>:"    ARGV[1]  which change    ARGV[2...]  its arguments
--
-- <p>job:<id>          hash    the record              <p>job:<id>:units   hash    output by finished unit
-- <p>job:<id>:events   stream  what happened           <p>tenant:<tenant>  zset    the tenant's jobs, by name
-- <p>queued            zset    waiting, by enqueuing   <p>active           zset    running, by end of their lease
-- <p>deadlines         zset    unfinished, by deadline <p>workers          zset    workers, by last heartbeat
-- <p>parked            zset    queued without a message until their guard answers, by parking
-- <p>idem:…            string  fingerprint and job     <p>stats            hash    seconds of service, jobs by end
-- <p>queued.train, <p>active.train, recent_ms.train    trainings apart: nobody who waits for a picture waits for them
--
-- Times are milliseconds of the server's clock: the processes' clocks need not agree.

local p, change = KEYS[1], ARGV[1]
local LEASE_MS, EVENTS, TOLD_BYTES = 15000, 512, 4096
local RECENT = 16 -- the mean time of service looks back over about so many jobs,
local OUTLIER = 10 -- and takes one that lasted longer than so many means for so many: one archive is no trend

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function job(id) return p .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', job(id), field) end

local function line(queue) return string.match(queue or '', '%.train$') or '' end
local function line_of(id) return line(get(id, 'queue')) end
local function limits_of(principal) return 'tf:limits:' .. (principal or '') .. ':' end

-- a job that waits has no stream yet: it would cost more memory than all the rest of it
local function event(id, kind, data)
  if redis.call('EXISTS', job(id) .. ':events') == 0 then
    local first = cjson.encode({ state = 'queued' })
    redis.call('XADD', job(id) .. ':events', get(id, 'created_at') .. '-0', 'kind', 'state', 'data', first)
  end
  redis.call('XADD', job(id) .. ':events', 'MAXLEN', '~', EVENTS, '*', 'kind', kind, 'data', data)
end

local function state_event(id, state)
  event(id, 'state', cjson.encode({ state = state }))
end

-- the message of `jobs.message`, with a tag of its own: kombu keeps what it delivered by tag
local MESSAGE = [[@MESSAGE@]]

local function enqueue(id)
  local queue = get(id, 'queue')
  local places = {
    METHOD = string.sub(p, 4, -2),
    ID = id,
    QUEUE = queue,
    TAG = id .. '-' .. now .. '-' .. math.random(1, 1000000000),
  }
  redis.call('ZADD', p .. 'queued' .. line(queue), now, id)
  redis.call('LPUSH', queue, (string.gsub(MESSAGE, '@(%u+)@', places)))
end

-- since when the job waits whose message is the next to be taken; nil for an empty list, 0 if that job waits no more
local function next_since(queue)
  local message = redis.call('LINDEX', queue, -1)
  if not message then return nil end
  local id = string.match(message, 'job_%w+')
  return tonumber(redis.call('ZSCORE', p .. 'queued' .. line(queue), id or '') or 0)
end

local function served(queue, spent)
  redis.call('HINCRBY', p .. 'stats', 'finished', 1)
  redis.call('HINCRBY', p .. 'stats', 'service_ms', spent)
  local field = 'recent_ms' .. line(queue)
  local mean = tonumber(redis.call('HGET', p .. 'stats', field)) or spent
  mean = mean + (math.min(spent, OUTLIER * math.max(mean, 1)) - mean) / RECENT
  redis.call('HSET', p .. 'stats', field, string.format('%.3f', mean))
end

-- who waits for the job is told with the whole record, if it is small: nobody need ask for it
local function announce(id)
  local told = id
  if redis.call('HSTRLEN', job(id), 'result') <= TOLD_BYTES then
    told = id .. ' ' .. cjson.encode(redis.call('HGETALL', job(id)))
  end
  redis.call('PUBLISH', p .. 'done', told)
end

-- a terminal state: the record stays for its time, everything else of the job goes with it
local function finish(id, state, field, value)
  local queue, principal, started, ttl, operation =
    unpack(redis.call('HMGET', job(id), 'queue', 'principal', 'started_at', 'ttl_ms', 'operation'))
  redis.call('HSET', job(id), 'state', state, 'finished_at', now, 'stage', '')
  if field then redis.call('HSET', job(id), field, value) end
  redis.call('ZREM', p .. 'active' .. line(queue), id)
  redis.call('ZREM', p .. 'queued' .. line(queue), id)
  redis.call('ZREM', p .. 'deadlines', id)
  redis.call('ZREM', p .. 'parked', id)
  redis.call('SREM', limits_of(principal) .. 'jobs', id)
  state_event(id, state)
  for _, suffix in ipairs({ '', ':events', ':units' }) do redis.call('PEXPIRE', job(id) .. suffix, ttl) end
  redis.call('HINCRBY', p .. 'stats', 'ended:' .. (operation or 'unknown') .. ':' .. state, 1)
  if state == 'succeeded' and started then served(queue, now - started) end
  announce(id)
end

-- the caller's start of the job is the newest one: every start has a number of its own, put back or not
local function holds(id, fence)
  local state, current = unpack(redis.call('HMGET', job(id), 'state', 'fence'))
  return (state == 'running' or state == 'cancelling') and current == fence
end

local changes = {}

-- id tenant idem_key fingerprint queue queue_limit needs_worker deadline_ms(relative)
-- principal its_job_limit its_pixel_limit pixels fields... -> outcome, id or seconds to wait
function changes.create(
  id, tenant, idem, fingerprint, queue, limit, needs_worker, deadline_in,
  principal, jobs_limit, pixels_limit, pixels, ...
)
  if redis.call('EXISTS', job(id)) == 1 then return { 'taken', '' } end
  if idem ~= '' then
    local seen = redis.call('GET', p .. 'idem:' .. idem)
    if seen then
      local space = string.find(seen, ' ', 1, true)
      if string.sub(seen, 1, space - 1) ~= fingerprint then return { 'conflict', '' } end
      return { 'replay', string.sub(seen, space + 1) }
    end
  end
  if needs_worker == '1' and redis.call('ZCOUNT', p .. 'workers', now - LIVE_MS, '+inf') == 0 then
    return { 'no_worker', '' }
  end
  local behind, k = line(queue), limits_of(principal)
  local function seconds(wait) return tostring(math.max(1, math.ceil(wait / 1000))) end
  if redis.call('ZCARD', p .. 'queued' .. behind) >= tonumber(limit) then
    return { 'full', seconds(queue_wait(p, behind, now)) }
  end
  if jobs_limit ~= '0' and redis.call('SCARD', k .. 'jobs') >= tonumber(jobs_limit) then
    return { 'jobs', seconds(wait_for_job(k, p, behind, now)) }
  end
  if pixels_limit ~= '0' and pixels ~= '0' then
    local exactly = instant()
    local wait = wait_for(k .. 'pixels', tonumber(pixels_limit), HOUR_MS, tonumber(pixels), exactly)
    if wait > 0 then return { 'pixels', seconds(wait) } end
    take(k .. 'pixels', tonumber(pixels_limit), HOUR_MS, tonumber(pixels), exactly)
  end
  redis.call('SADD', k .. 'jobs', id)
  if idem ~= '' then redis.call('SET', p .. 'idem:' .. idem, fingerprint .. ' ' .. id, 'EX', 86400) end
  redis.call('HSET', job(id), 'state', 'queued', 'attempt', 0, 'created_at', now, 'deadline', now + deadline_in, ...)
  redis.call('ZADD', p .. 'tenant:' .. tenant, 0, id)
  redis.call('ZADD', p .. 'deadlines', now + deadline_in, id)
  enqueue(id)
  return { 'created', id }
end

-- id worker -> outcome, flat record
function changes.start(id, worker)
  local state, attempt, attempts, deadline =
    unpack(redis.call('HMGET', job(id), 'state', 'attempt', 'attempts', 'deadline'))
  if not state then return { 'gone' } end
  if state == 'running' or state == 'cancelling' then
    local lease = redis.call('ZSCORE', p .. 'active' .. line_of(id), id)
    if lease and tonumber(lease) > now then return { 'busy' } end
    if state == 'cancelling' then
      finish(id, 'cancelled')
      return { 'finished' }
    end
  elseif state ~= 'queued' then
    return { 'finished' }
  end
  if tonumber(deadline) <= now then
    finish(id, 'expired')
    return { 'finished' }
  end
  if tonumber(attempt) >= tonumber(attempts) then
    finish(id, 'failed', 'lost', attempt)
    return { 'finished' }
  end
  local queued = redis.call('ZSCORE', p .. 'queued' .. line_of(id), id) or now  -- `now`: taken over, did not wait
  redis.call('HSET', job(id), 'state', 'running', 'worker', worker, 'started_at', now, 'stage', '', 'queued_at', queued)
  redis.call('HINCRBY', job(id), 'attempt', 1)
  redis.call('HINCRBY', job(id), 'fence', 1)
  redis.call('ZREM', p .. 'queued' .. line_of(id), id)
  redis.call('ZADD', p .. 'active' .. line_of(id), now + LEASE_MS, id)
  state_event(id, 'running')
  return { 'started', redis.call('HGETALL', job(id)) }
end

-- worker, then pairs of id and fence -> what to do with each: go, cancel, deadline or lost
function changes.renew(worker, ...)
  redis.call('ZADD', p .. 'workers', now, worker)
  redis.call('ZREMRANGEBYSCORE', p .. 'workers', '-inf', now - 10 * LIVE_MS)
  local pairs_, answers = { ... }, {}
  for i = 1, #pairs_, 2 do
    local id, fence = pairs_[i], pairs_[i + 1]
    local answer = 'lost'
    if holds(id, fence) then
      redis.call('ZADD', p .. 'active' .. line_of(id), now + LEASE_MS, id)
      answer = 'go'
      if tonumber(get(id, 'deadline')) <= now then answer = 'deadline' end
      if get(id, 'state') == 'cancelling' then answer = 'cancel' end
    end
    answers[#answers + 1] = answer
  end
  return answers
end

function changes.leave(worker)
  return redis.call('ZREM', p .. 'workers', worker)
end

-- id fence field value kind -> 1, or 0 when another start of the job runs by now
function changes.report(id, fence, field, value, kind)
  if not holds(id, fence) then return 0 end
  redis.call('HSET', job(id), field, value)
  if kind ~= '' then event(id, kind, value) end
  return 1
end

function changes.unit(id, fence, index, of, output)
  if not holds(id, fence) then return 0 end
  redis.call('HSET', job(id) .. ':units', index, output)
  local units = cjson.encode({ done = redis.call('HLEN', job(id) .. ':units'), of = tonumber(of) })
  redis.call('HSET', job(id), 'units', units)
  event(id, 'unit', units)
  return 1
end

function changes.finish(id, fence, state, field, value)
  if not holds(id, fence) then return 0 end
  finish(id, state, field, value)
  return 1
end

-- a worker that shuts down gives its job back: the attempt does not count
function changes.put_back(id, fence)
  if not holds(id, fence) then return 0 end
  if get(id, 'state') == 'cancelling' then
    finish(id, 'cancelled')
    return 1
  end
  redis.call('HSET', job(id), 'state', 'queued', 'stage', '')
  redis.call('HINCRBY', job(id), 'attempt', -1)
  redis.call('ZREM', p .. 'active' .. line_of(id), id)
  state_event(id, 'queued')
  enqueue(id)
  return 1
end

-- a job gives its place up until another job, its guard, has answered: the attempt does not count
function changes.park(id, fence, guard)
  if not holds(id, fence) then return 0 end
  if get(id, 'state') == 'cancelling' then
    finish(id, 'cancelled')
    return 1
  end
  redis.call('HSET', job(id), 'state', 'queued', 'stage', 'guard', 'guard', guard)
  redis.call('HINCRBY', job(id), 'attempt', -1)
  redis.call('ZREM', p .. 'active' .. line_of(id), id)
  redis.call('ZADD', p .. 'parked', now, id)
  state_event(id, 'queued')
  return 1
end

-- its guard has answered, or never will -> 1, or 0 for a job that is not parked (any more)
function changes.unpark(id, guard)
  if redis.call('ZREM', p .. 'parked', id) == 0 then return 0 end
  redis.call('HSET', job(id), 'stage', '', 'guard', guard)
  enqueue(id)
  return 1
end

function changes.cancel(id)
  local state = get(id, 'state')
  if state == 'queued' then
    finish(id, 'cancelled')
  elseif state == 'running' then
    redis.call('HSET', job(id), 'state', 'cancelling')
    state_event(id, 'cancelling')
    redis.call('PUBLISH', p .. 'cancel', id)
  end
  return get(id, 'state')
end

-- jobs whose worker is gone, waiting jobs whose message is gone, waiting jobs whose time is over -> how many of each
function changes.reap(stray_ms)
  local lost, stray, late = 0, 0, 0
  local function first(set, until_) return redis.call('ZRANGEBYSCORE', p .. set, '-inf', until_, 'LIMIT', 0, 100) end
  for _, active in ipairs({ 'active', 'active.train' }) do
    for _, id in ipairs(first(active, now)) do
      local state, attempt, attempts = unpack(redis.call('HMGET', job(id), 'state', 'attempt', 'attempts'))
      lost = lost + 1
      if state == 'cancelling' then
        finish(id, 'cancelled')
      elseif state ~= 'running' then
        redis.call('ZREM', p .. active, id)
      elseif tonumber(attempt) >= tonumber(attempts) then
        finish(id, 'failed', 'lost', attempt)
      else
        redis.call('HSET', job(id), 'state', 'queued', 'stage', '')
        redis.call('ZREM', p .. active, id)
        state_event(id, 'queued')
        enqueue(id)
      end
    end
  end
  for _, id in ipairs(first('deadlines', now)) do
    if get(id, 'state') == 'queued' then
      finish(id, 'expired')
      late = late + 1
    elseif get(id, 'state') ~= 'running' and get(id, 'state') ~= 'cancelling' then
      redis.call('ZREM', p .. 'deadlines', id)
    end
  end
  for _, queued in ipairs({ 'queued', 'queued.train' }) do
    for _, id in ipairs(first(queued, now - stray_ms)) do
      local queue = get(id, 'queue')
      if not queue then
        redis.call('ZREM', p .. queued, id)
      elseif redis.call('ZSCORE', p .. queued, id) + 0 < (next_since(queue) or math.huge) then
        -- a list is first in, first out: the message died with a worker. A second one does no harm
        enqueue(id)
        stray = stray + 1
      end
    end
  end
  return { lost, stray, late }
end

return changes[change](unpack(ARGV, 2))
