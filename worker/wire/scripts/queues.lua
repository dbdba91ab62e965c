#!lua flags=no-writes
-- For each queue: how many jobs wait, for how long the first of them has, how many have failed.
local DEAD = 10 -- entries whose job is gone that are looked past
local report = {}
for _, name in ipairs(args.queues) do
  local queue = rq .. ':queue:' .. name
  local waiting, since = false, false
  for _, id in ipairs(redis.call('LRANGE', queue, 0, DEAD)) do
    local job = redis.call('HMGET', job_key(id), 'status', 'dfl_deadline', 'timeout', 'enqueued_at')
    if job[1] == 'queued' then
      -- By this server's clock. Whom an operator has requeued has no deadline, only RQ's own time.
      waiting = job[2] and tostring(math.max(0, now - job[2] + job[3]))
      since = not job[2] and job[4]
      break
    end
  end
  report[#report + 1] = {redis.call('LLEN', queue), waiting, since,
    redis.call('ZCOUNT', rq .. ':failed:' .. name, now, '+inf')}
end
return report
