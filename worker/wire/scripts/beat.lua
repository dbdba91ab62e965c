#!lua flags=allow-oom
local lost, cancelled = {}, {}
local lease_ttl = math.ceil(args.lease)
local worker = rq .. ':worker:' .. args.worker

local function renew(job)
  redis.call('ZADD', rq .. ':wip:' .. job.queue, now + args.lease, job.id .. ':' .. job.execution)
  redis.call('HSET', execution_key(job), 'id', job.execution, 'job_id', job.id,
    'created_at', job.started, 'last_heartbeat', now, 'worker_name', args.worker)
  redis.call('EXPIRE', execution_key(job), lease_ttl)
  fair.hold_place(job)
  redis.call('ZADD', rq .. ':executions:' .. job.id, now + args.lease + 60, job.execution)
  redis.call('EXPIRE', rq .. ':executions:' .. job.id, lease_ttl + 60)
  redis.call('HSET', job_key(job.id), 'last_heartbeat', args.iso)
  redis.call('EXPIRE', job_key(job.id), job.keep)
  redis.call('EXPIRE', log_key(job.id), job.keep)
end

-- What the API lists: a sorted set of names, each with a key that holds the words and dies alone.
local function list(index, kind, name, words, ttl)
  redis.call('SET', dfl .. ':' .. kind .. ':' .. name, words, 'EX', ttl)
  redis.call('ZADD', dfl .. ':' .. index, now + ttl, name)
  redis.call('ZREMRANGEBYSCORE', dfl .. ':' .. index, '-inf', now)
end

for _, held in ipairs(args.jobs) do
  local job = read_job(held[1])
  if holds(job, held[2]) then
    renew(job)
    if job.cancelled then cancelled[#cancelled + 1] = job.id end
  elseif job.status == 'canceled' and job.execution == held[2] then
    cancelled[#cancelled + 1] = job.id -- by rq's own Job.cancel
  else
    lost[#lost + 1] = job.id
  end
end
-- Started in our name, but the reply to that claim got lost: nobody runs these.
local known = {}
for _, member in ipairs(args.members) do known[member] = true end
for _, member in ipairs(redis.call('SMEMBERS', worker .. ':executions')) do
  local id, execution = split_member(member)
  local job = not known[member] and id and read_job(id)
  if job and holds(job, execution) then requeue(job) end
end

list('workers', 'worker', args.worker, args.info, lease_ttl)
if not args.is_draining then -- who is about to go offers nothing
  list('models', 'model', args.model, args.model_info, args.model_ttl)
  local offers = dfl .. ':offers:' .. args.pool
  for _, name in ipairs({kind_of(args.fingerprint), unpack(args.offers)}) do
    redis.call('ZADD', offers, now + args.lease, name)
  end
  redis.call('EXPIRE', offers, lease_ttl)
end
local registered = redis.call('EXISTS', worker)
if registered == 1 then
  redis.call('HSET', worker, 'last_heartbeat', args.iso)
  redis.call('EXPIRE', worker, lease_ttl + 60)
  redis.call('EXPIRE', worker .. ':executions', lease_ttl + 60)
  show_state(args.worker)
end
return {lost, cancelled, registered}
