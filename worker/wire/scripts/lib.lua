-- Shared by every script. The arguments are one msgpack map, `args`.
local args = cmsgpack.unpack(ARGV[1])
local rq, dfl = args.rq, args.dfl
local clock = redis.call('TIME') -- one clock for all leases, whatever the hosts' clocks say
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local fair = {} -- filled by fair.lua, which comes after this

local function job_key(id) return rq .. ':job:' .. id end
local function log_key(id) return dfl .. ':log:' .. id end
local function execution_key(job) return rq .. ':execution:' .. job.id .. ':' .. job.execution end

local function read_job(id)
  local field = redis.call('HMGET', job_key(id), 'status', 'origin', 'worker_name', 'timeout',
    'result_ttl', 'failure_ttl', 'retries_left', 'dfl_api', 'dfl_execution', 'dfl_started',
    'dfl_cancel', 'dfl_hook_ttl', 'dfl_tenant', 'dfl_cost', 'dfl_max_running', 'dfl_max_waiting')
  local failure_ttl = tonumber(field[6] or args.failure_ttl or 86400)
  return {
    id = id, status = field[1], queue = field[2] or '', worker = field[3] or '',
    result_ttl = tonumber(field[5] or args.result_ttl or 3600), failure_ttl = failure_ttl,
    timeout = tonumber(field[4] or 3600),
    keep = tonumber(field[4] or 3600) + failure_ttl, -- longer than it can run
    retries_left = tonumber(field[7] or 0), api = field[8], execution = field[9] or '',
    started = tonumber(field[10] or 0), cancelled = field[11], hook_ttl = tonumber(field[12] or 0),
    tenant = field[13], cost = tonumber(field[14] or 1), max_running = tonumber(field[15]),
    is_counted = field[16],
  }
end

-- What holds things of many lives lives as long as the longest of them.
local function keep_at_least(key, seconds)
  redis.call('EXPIRE', key, seconds, 'NX')
  redis.call('EXPIRE', key, seconds, 'GT')
end

local PRIORITIES = {'interactive', 'default', 'batch'}

-- The queue to which a special one belongs (route.lua: `<queue>.<needs>`, one or two needs), or
-- the queue itself. It is the one that workers listen for.
local function base_of(queue)
  local base = queue
  for _ = 0, 2 do
    for _, priority in ipairs(PRIORITIES) do
      if string.sub(base, -#priority - 1) == '.' .. priority then return base end
    end
    base = string.match(base, '^(.+)%.[^.]*$') or base
  end
  return queue
end

local function wake(queue)
  local base = base_of(queue)
  redis.call('PUBLISH', dfl .. ':wake:' .. base, base)
end

-- The fence. The hash decides, not the registry: rq's own clean-up and cancel change the status
-- first and may leave registry entries behind.
local function holds(job, execution)
  return job.status == 'started' and job.execution == execution
end

-- Frames are put together here, so that what the fence refuses is not in them.
local frames = {}

-- `events` are `count` packed events in a row; `api` names all who listen, between commas.
local function say(api, events, count)
  if not api or api == '' then return end
  local frame = frames[api]
  if not frame then
    frame = {count = 0}
    frames[api] = frame
  end
  frame.count = frame.count + count
  frame[#frame + 1] = events
end

local function array_head(count)
  return string.char(0xdd) .. struct.pack('>I4', count)
end

local function publish_frames()
  for listeners, frame in pairs(frames) do
    local words = '\146' .. args.frame_head .. array_head(frame.count) .. table.concat(frame)
    for api in string.gmatch(listeners, '[^,]+') do
      redis.call('PUBLISH', dfl .. ':api:' .. api, words)
    end
  end
end

local function failure(job, why)
  local event = cmsgpack.pack({'failed', job.id, why.status, why.message, why.code})
  return {status = 'failed', event = event, exc = why.exc}
end

-- Remove what says that `job.worker` is running the job; others of its key may have its place.
local function leave(job)
  if job.execution == '' then return end
  local member = job.id .. ':' .. job.execution
  redis.call('ZREM', rq .. ':wip:' .. job.queue, member)
  redis.call('DEL', execution_key(job), rq .. ':executions:' .. job.id)
  redis.call('SREM', rq .. ':worker:' .. job.worker .. ':executions', member)
  fair.leave_place(job)
end

-- A worker is busy while it runs anything. HSET on a hash that has expired would bring it back.
local function show_state(worker)
  local key = rq .. ':worker:' .. worker
  if redis.call('EXISTS', key) == 1 then
    local running = redis.call('SCARD', key .. ':executions')
    redis.call('HSET', key, 'state', running > 0 and 'busy' or 'idle')
  end
end

local function count_ending(job, ending)
  local key = rq .. ':worker:' .. job.worker
  if job.execution == '' or redis.call('EXISTS', key) == 0 then return end
  local counter = ending.status == 'finished' and 'successful_job_count' or 'failed_job_count'
  if ending.status ~= 'canceled' then redis.call('HINCRBY', key, counter, 1) end
  redis.call('HINCRBYFLOAT', key, 'total_working_time', string.format('%.6f', now - job.started))
end

local function add_result(job, ending)
  if ending.status == 'canceled' then return end
  local key = rq .. ':results:' .. job.id
  local field = {'type', ending.status == 'finished' and 1 or 2, 'worker_name', job.worker}
  local function add(name, value)
    field[#field + 1], field[#field + 2] = name, value
  end
  if (ending.result or '') ~= '' then add('return_value', ending.result) end
  if ending.exc then add('exc_string', ending.exc) end
  if job.execution ~= '' then
    add('execution_id', job.execution)
    add('execution_started_at', string.format('%.6f', job.started))
    add('execution_ended_at', string.format('%.6f', now))
  end
  redis.call('XADD', key, 'MAXLEN', 10, '*', unpack(field))
  redis.call('EXPIRE', key, ending.ttl)
end

local function register_ending(job, ending)
  if ending.status == 'canceled' then
    redis.call('ZADD', rq .. ':canceled:' .. job.queue, now, job.id) -- rq scores these by their time
  else
    local name = ending.status == 'finished' and ':finished:' or ':failed:' -- stopped is failed, too
    redis.call('ZADD', rq .. name .. job.queue, now + ending.ttl, job.id)
  end
end

-- In the step that ends the job, so that no crash can lose its webhook.
local function owe_webhook(job)
  local key = job_key(job.id)
  redis.call('HSET', key, 'dfl_hook_state', 'pending', 'dfl_hook_attempt', 0)
  redis.call('HINCRBY', key, 'dfl_hook_event', 1)
  redis.call('ZADD', dfl .. ':webhooks', now, job.id)
end

-- End a job: for RQ, for whoever waits for it, and for whoever asks later.
local function finish(job, ending)
  if ending.status == 'stopped' and job.cancelled then ending.status = 'canceled' end
  local failed = ending.status == 'failed' or ending.status == 'stopped'
  ending.ttl = math.max(1, failed and job.failure_ttl or job.result_ttl, job.hook_ttl)
  leave(job)
  fair.note_not_waiting(job)
  -- It may have come back for a free place of its key, which is another's now.
  if job.execution == '' and job.status == 'queued' then fair.leave_place(job) end
  redis.call('HSET', job_key(job.id), 'status', ending.status, 'ended_at', args.iso,
    'dfl_ending', ending.event, 'dfl_ended_by', job.execution)
  -- Without its deadlines, so that an operator can requeue it later.
  redis.call('HDEL', job_key(job.id), 'dfl_execution', 'dfl_deadline', 'dfl_start_by')
  if job.hook_ttl > 0 then owe_webhook(job) end
  redis.call('EXPIRE', job_key(job.id), ending.ttl)
  redis.call('EXPIRE', log_key(job.id), ending.ttl)
  register_ending(job, ending)
  add_result(job, ending)
  count_ending(job, ending)
  say(job.api, ending.event, 1)
end

local function cancel(job)
  local ending = failure(job, args.cancelled)
  ending.status = 'canceled'
  finish(job, ending)
end

-- Back to the front of its queue: it has waited once already.
local function requeue(job)
  leave(job)
  redis.call('HSET', job_key(job.id), 'status', 'queued', 'enqueued_at', args.iso,
    'started_at', '', 'worker_name', '', 'dfl_turn', fair.FIRST)
  redis.call('HDEL', job_key(job.id), 'dfl_execution')
  fair.note_requeued(job)
  redis.call('LPUSH', rq .. ':queue:' .. job.queue, job.id)
  wake(job.queue)
end

-- The worker that ran the job is dead: the only thing that spends an attempt.
local function bury(job, requeued, failed)
  redis.call('HINCRBY', job_key(job.id), 'dfl_deaths', 1)
  if job.cancelled then
    cancel(job)
  elseif job.retries_left > 0 then
    redis.call('HINCRBY', job_key(job.id), 'retries_left', -1)
    requeue(job)
    requeued[#requeued + 1] = job.id
  else
    finish(job, failure(job, args.lost))
    failed[#failed + 1] = job.id
  end
end

-- How it is written that a worker can go on with what such weights have begun.
local function kind_of(fingerprint)
  return 'kind-' .. string.gsub(fingerprint, '[^%w_-]', '_')
end

local function split_member(member)
  return string.match(member, '^([^:]+):(.+)$')
end

local function leave_queue(job)
  redis.call('LREM', rq .. ':queue:' .. job.queue, 0, job.id)
  fair.undefer(job)
end

-- All queues of the model of `queue`, the most urgent first.
local function sister_queues(queue)
  local model = string.match(base_of(queue), '^(.*)%.%a+$') or queue
  local names = {}
  for _, priority in ipairs(PRIORITIES) do
    names[#names + 1] = model .. '.' .. priority
  end
  return names
end

-- How many jobs will be claimed before the one that has `place` jobs before it in its own queue.
-- This is claim.lua's order told once more: whoever changes the one changes the other.
local function position_at(queue, place)
  for _, name in ipairs(sister_queues(queue)) do
    if name == base_of(queue) then break end
    place = place + redis.call('LLEN', rq .. ':queue:' .. name)
  end
  return place
end

local function position_of(job)
  local place = fair.num_before(job)
  return place and position_at(job.queue, place)
end

-- How many sequences the living workers of a queue run at once.
local function places_of(queue)
  local places = 0
  for _, key in ipairs(redis.call('SMEMBERS', rq .. ':workers:' .. queue)) do
    local words = redis.call('GET', dfl .. ':worker:' .. string.sub(key, #rq + 9))
    if words then places = places + (cmsgpack.unpack(words).max_batch_size or 0) end
  end
  return places
end

-- Seconds, as text, until a job at `position` will be claimed; false where nothing tells. While it
-- waits the workers are full, so what they have finished since it came is what they can.
local function wait_of(job, position)
  local deadline = tonumber(redis.call('HGET', job_key(job.id), 'dfl_deadline') or '')
  local waited = deadline and now - deadline + job.timeout or 0
  local window = math.min(60, math.max(10, waited))
  local free, num_finished = places_of(job.queue), 0
  if free == 0 then return false end
  for _, name in ipairs(sister_queues(job.queue)) do
    free = free - redis.call('ZCARD', rq .. ':wip:' .. name)
    num_finished = num_finished
      + redis.call('ZCOUNT', rq .. ':finished:' .. name, now - window + job.result_ttl, '+inf')
  end
  if position < free then return '0' end
  if num_finished == 0 then return false end
  return string.format('%.3f', (position - math.max(0, free) + 1) * window / num_finished)
end
