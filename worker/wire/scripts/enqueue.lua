#!lua
-- Without allow-oom: at the memory limit new work is refused, and what is there goes on.
local queue = rq .. ':queue:' .. args.queue
if redis.call('EXISTS', job_key(args.id)) == 1 then
  -- The very same bytes: this command, sent again because its first reply got lost.
  if redis.call('HGET', job_key(args.id), 'dfl') ~= args.payload then return {'duplicate', 0, 0} end
  return {'queued', redis.call('LPOS', queue, args.id) or 0, 0}
end
local length = redis.call('LLEN', queue)
if length >= args.max_queue_size then
  -- Finished jobs are scored by when they are forgotten, so the top of the set is the last 10 s.
  local since = now - 10 + args.result_ttl
  return {'full', length, redis.call('ZCOUNT', rq .. ':finished:' .. args.queue, since, '+inf')}
end
redis.call('HSET', job_key(args.id), 'dfl', args.payload,
  'dfl_deadline', string.format('%.3f', now + args.timeout), unpack(args.fields))
redis.call('EXPIRE', job_key(args.id), args.keep)
redis.call('RPUSH', queue, args.id)
redis.call('SADD', rq .. ':queues', queue)
redis.call('PUBLISH', dfl .. ':wake:' .. args.queue, args.queue)
return {'queued', length, 0}
