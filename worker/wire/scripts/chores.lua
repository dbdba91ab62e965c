#!lua flags=allow-oom
-- What no worker may be there to do: end jobs that have waited too long, hand out due webhooks.
local waiting, webhooks = dfl .. ':waiting', dfl .. ':webhooks'

local function why_late(limits)
  if limits[1] and tonumber(limits[1]) <= now then return args.overdue end
  if limits[2] and tonumber(limits[2]) <= now then return args.expired end
end

local function look_at_waiting(id)
  local job = read_job(id)
  redis.call('ZREM', waiting, id)
  if not fair.is_waiting(job) and job.status ~= 'started' then return end
  local limits = redis.call('HMGET', job_key(id), 'dfl_start_by', 'dfl_deadline')
  local why = why_late(limits)
  if why and fair.is_waiting(job) then
    leave_queue(job)
    finish(job, failure(job, why))
  elseif not why and limits[2] then
    redis.call('ZADD', waiting, limits[2], id) -- it may come back, should its worker die
  end
end

local is_ending = {finished = true, failed = true, stopped = true, canceled = true}

-- Each is a sender's for the length of a lease; who dies with it leaves it due again.
local function hand_out(id)
  local key = job_key(id)
  local field = redis.call('HMGET', key, 'status', 'dfl_tenant', 'dfl_hook_event')
  if not is_ending[field[1]] then return redis.call('ZREM', webhooks, id) end
  local attempt = redis.call('HINCRBY', key, 'dfl_hook_attempt', 1)
  if attempt > args.max_attempts then
    redis.call('ZREM', webhooks, id)
    redis.call('HSET', key, 'dfl_hook_state', 'failed')
    return
  end
  redis.call('ZADD', webhooks, now + args.lease, id)
  return {id, field[2], field[3], attempt}
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, 100)) do
  look_at_waiting(id)
end
local handed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', webhooks, '-inf', now, 'LIMIT', 0, args.limit)) do
  local webhook = hand_out(id)
  if type(webhook) == 'table' then handed[#handed + 1] = webhook end
end
publish_frames()
return handed
