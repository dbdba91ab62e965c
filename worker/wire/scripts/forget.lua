#!lua flags=allow-oom
-- Drop what an ended job says and was asked; RQ keeps what its registries show, until it expires.
local job = read_job(args.id)
local field = redis.call('HMGET', job_key(args.id), 'dfl_tenant', 'dfl')
if not field[2] or field[1] ~= args.tenant then return 0 end
if fair.is_waiting(job) or job.status == 'started' then return -1 end
redis.call('HDEL', job_key(args.id), 'dfl', 'dfl_job', 'dfl_answer', 'dfl_ending')
redis.call('UNLINK', log_key(args.id))
return 1
