#!lua flags=allow-oom
local job = read_job(args.id)
if args.tenant and redis.call('HGET', job_key(args.id), 'dfl_tenant') ~= args.tenant then return 0 end
if fair.is_waiting(job) then
  leave_queue(job)
  fair.refund(job)
  cancel(job)
  publish_frames()
  return 1
end
if job.status ~= 'started' then return 0 end
-- The message may be lost; the mark is read at the worker's next beat, and by the reaper.
redis.call('HSET', job_key(job.id), 'dfl_cancel', 1)
redis.call('PUBLISH', rq .. ':pubsub:' .. job.worker,
  cjson.encode({command = 'stop-job', job_id = job.id}))
return 1
