-- Whether a request may come in, asked before anything of its body is read. What it uses up at once (one request) is
-- taken only where nothing else refuses it. `limits.lua` stands before.
--
-- KEYS[1]  "tf:limits:<principal>:"    KEYS[2]  "tf:<method>:" of a call, or nothing
-- ARGV     requests a minute, pixels an hour, jobs, bytes (0: any), bytes it brings, '' or '.train', patience (ms, 0: any)
-- returns  one line, which is read faster than a list: what it was refused for, longest wait first, with commas; that
--          wait; requests left, until one more; pixels left, until one more; unfinished jobs; stored bytes. Waits are
--          whole milliseconds, rounded up

local k, p, line = KEYS[1], KEYS[2], ARGV[6]
local requests, pixels, jobs, bytes, brought, patience =
  tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local now = instant()

local refused, wait = {}, 0
local function refuse(policy, for_)
  if for_ <= 0 then return end
  if for_ > wait then
    wait = for_
    table.insert(refused, 1, policy)
  else
    refused[#refused + 1] = policy
  end
end

if requests > 0 then refuse('requests', wait_for(k .. 'requests', requests, MINUTE_MS, 1, now)) end

local held = 0
if bytes > 0 then
  held = stored(k, now)
  if held + math.max(brought, 1) > bytes then
    refuse('stored-bytes', wait_for_bytes(k, held + math.max(brought, 1) - bytes, now))
  end
end

local unfinished = 0
if p then
  if pixels > 0 then refuse('pixels', wait_for(k .. 'pixels', pixels, HOUR_MS, 1, now)) end
  if jobs > 0 then
    unfinished = redis.call('SCARD', k .. 'jobs')
    if unfinished >= jobs then refuse('running-jobs', wait_for_job(k, p, line, now)) end
  end
  if patience > 0 then refuse('queue', queue_wait(p, line, now) - patience) end
end

if #refused == 0 and requests > 0 then take(k .. 'requests', requests, MINUTE_MS, 1, now) end

local answer = { math.ceil(wait), 0, 0, 0, 0, unfinished, held }
local function standing(at, key, quota, window)
  if quota == 0 then return end
  local units, until_more = left(key, quota, window, now)
  answer[at], answer[at + 1] = units, math.ceil(until_more)
end
standing(2, k .. 'requests', requests, MINUTE_MS)
if p then standing(4, k .. 'pixels', pixels, HOUR_MS) end
return table.concat(refused, ',') .. string.rep(' %.0f', #answer):format(unpack(answer))
