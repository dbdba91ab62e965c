#!lua flags=no-writes
-- All that a job's owner may see of it, but for its output.
local job = read_job(args.id)
local field = redis.call('HMGET', job_key(args.id), 'dfl_tenant', 'dfl', 'dfl_job', 'dfl_answer',
  'dfl_ending', 'started_at', 'ended_at', 'dfl_attempt', 'dfl_hook_state', 'dfl_hook_attempt',
  'dfl_hook_words')
if not job.status or not field[2] or field[1] ~= args.tenant then return {} end
local position = position_of(job)
local wait = position and wait_of(job, position)
local due = field[9] == 'pending' and redis.call('ZSCORE', dfl .. ':webhooks', job.id)
return {job.status, position, wait, redis.call('TTL', job_key(job.id)), due, unpack(field, 2, 11)}
