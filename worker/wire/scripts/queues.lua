#!lua flags=no-writes
-- For each queue: how many jobs wait (in it, and of it for workers that have what they need), how
-- long its first one has, how many have failed, how many wait for others of their key.
local DEAD = 10 -- entries whose job is gone that are looked past
local report = {}

local function num_waiting(queue)
  local count = redis.call('LLEN', rq .. ':queue:' .. queue)
  for _, special in ipairs(redis.call('SMEMBERS', dfl .. ':special:' .. sister_queues(queue)[1])) do
    if base_of(special) == queue then
      count = count + redis.call('LLEN', rq .. ':queue:' .. special)
    end
  end
  return count
end

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
  report[#report + 1] = {num_waiting(name), waiting, since,
    redis.call('ZCOUNT', rq .. ':failed:' .. name, now, '+inf'),
    redis.call('ZCARD', rq .. ':deferred:' .. name)}
end
return report
