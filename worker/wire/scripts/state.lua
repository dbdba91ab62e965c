#!lua flags=no-writes
local job = read_job(args.id)
if not job.status then return {} end
local field = redis.call('HMGET', job_key(args.id), 'dfl_answer', 'dfl_ending')
local position = position_of(job)
return {job.status, position, field[1], field[2], position and wait_of(job, position)}
