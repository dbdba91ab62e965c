#!lua flags=allow-oom
-- Give the jobs of silent workers to others. Atomic, so that two reapers cannot requeue one twice.
local requeued, failed = {}, {}

local function reap(queue)
  local wip = rq .. ':wip:' .. queue
  -- The highest score first: each goes to the front, so the one that waits longest ends up there.
  for _, member in ipairs(redis.call('ZREVRANGEBYSCORE', wip, now, '-inf')) do
    local id, execution = split_member(member)
    local job = id and read_job(id)
    if job and holds(job, execution) then
      job.queue = queue
      bury(job, requeued, failed)
    end
    redis.call('ZREM', wip, member)
  end
end

-- RQ trims these only from its own workers' maintenance, and `canceled` never.
local function trim(queue)
  redis.call('ZREMRANGEBYSCORE', rq .. ':finished:' .. queue, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', rq .. ':failed:' .. queue, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', rq .. ':canceled:' .. queue, '-inf', now - args.canceled_ttl)
end

-- Jobs that wait for others of their key, and whom the end of their time finds there.
local function look_at_deferred(queue)
  for _, id in ipairs(redis.call('ZRANGE', rq .. ':deferred:' .. queue, 0, 31)) do
    local job, deadline = read_job(id), redis.call('HGET', job_key(id), 'dfl_deadline')
    if job.status ~= 'deferred' then
      redis.call('ZREM', rq .. ':deferred:' .. queue, id)
    elseif deadline and tonumber(deadline) < now then
      fair.undefer(job)
      finish(job, failure(job, args.expired))
    end
  end
end

local function look_after(queue)
  reap(queue)
  look_at_deferred(queue)
  trim(queue)
end

route.find_special()
for _, queue in ipairs(route.special_queues()) do
  look_after(queue)
  route.fail_unserved(queue)
  route.drop_if_unused(queue)
end
for _, queue in ipairs(args.queues) do
  look_after(queue)
  for _, key in ipairs(redis.call('SMEMBERS', rq .. ':workers:' .. queue)) do
    if redis.call('EXISTS', key) == 0 then
      redis.call('SREM', rq .. ':workers:' .. queue, key)
      redis.call('SREM', rq .. ':workers', key)
    end
  end
end
fair.repair_lanes()
publish_frames()
return {requeued, failed}
