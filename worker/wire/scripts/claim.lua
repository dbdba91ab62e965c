#!lua flags=allow-oom
-- Pop and start in one: a crash can fall before or after it, never between.
local claims = {}
local lease_ttl = math.ceil(args.lease)

-- One that an operator has put back has no deadline any more, and gets its time anew.
local function time_left(job, deadline)
  if not deadline then
    deadline = string.format('%.3f', now + job.timeout)
    redis.call('HSET', job_key(job.id), 'dfl_deadline', deadline)
  end
  return string.format('%.3f', deadline - now)
end

local function start(job, execution, fields)
  local key, member = job_key(job.id), job.id .. ':' .. execution
  leave(job) -- of an execution that rq's clean-up has taken away and left traces of
  job.execution = execution
  job.worker = args.worker
  redis.call('HSET', key, 'status', 'started', 'started_at', args.iso, 'last_heartbeat', args.iso,
    'ended_at', '', 'worker_name', args.worker, 'dfl_execution', execution, 'dfl_started', now,
    'dfl_fingerprint', args.fingerprint)
  redis.call('HDEL', key, 'dfl_cancel', 'dfl_ending', 'dfl_ended_by', 'dfl_start_by')
  redis.call('EXPIRE', key, job.keep)
  redis.call('HSET', execution_key(job), 'id', execution, 'job_id', job.id,
    'created_at', now, 'last_heartbeat', now, 'worker_name', args.worker)
  redis.call('EXPIRE', execution_key(job), lease_ttl)
  redis.call('ZADD', rq .. ':executions:' .. job.id, now + args.lease + 60, execution)
  redis.call('EXPIRE', rq .. ':executions:' .. job.id, lease_ttl + 60)
  redis.call('ZADD', rq .. ':wip:' .. job.queue, now + args.lease, member)
  redis.call('SADD', rq .. ':worker:' .. args.worker .. ':executions', member)
  local attempt = redis.call('HINCRBY', key, 'dfl_attempt', 1)
  return {job.id, execution, job.queue, attempt, fields[1], time_left(job, fields[2])}
end

-- The rest of an answer fits only what the same weights, tokenizer and template have begun.
local function is_begun_by_another_kind(job)
  local begun_by = redis.call('HGET', job_key(job.id), 'dfl_fingerprint')
  return args.fingerprint ~= '' and begun_by and begun_by ~= args.fingerprint
    and redis.call('EXISTS', log_key(job.id)) == 1
end

local function try(id)
  local job = read_job(id)
  if job.status ~= 'queued' then return end -- cancelled, forgotten, or queued twice and running
  local fields = redis.call('HMGET', job_key(id), 'dfl', 'dfl_deadline', 'dfl_start_by')
  if not fields[1] then
    finish(job, failure(job, args.foreign))
  elseif fields[2] and tonumber(fields[2]) < now then
    finish(job, failure(job, args.expired))
  elseif fields[3] and tonumber(fields[3]) < now then
    finish(job, failure(job, args.overdue))
  elseif is_begun_by_another_kind(job) then
    finish(job, failure(job, args.unlike))
  else
    claims[#claims + 1] = start(job, args.execution .. '-' .. #claims, fields)
  end
end

local num_looked_at = 0
for _, queue in ipairs(args.queues) do
  while #claims < args.limit and num_looked_at < args.limit + 256 do
    local id = redis.call('LPOP', rq .. ':queue:' .. queue)
    if not id then break end
    num_looked_at = num_looked_at + 1
    try(id)
  end
end
if #claims > 0 then
  redis.call('EXPIRE', rq .. ':worker:' .. args.worker .. ':executions', lease_ttl + 60)
  show_state(args.worker)
end
publish_frames()
return claims
