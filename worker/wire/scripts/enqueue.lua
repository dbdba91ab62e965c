#!lua
-- Without allow-oom: at the memory limit new work is refused, and what is there goes on.
local queue = rq .. ':queue:' .. args.queue
if redis.call('EXISTS', job_key(args.id)) == 1 then
  -- The very same bytes: this command, sent again because its first reply got lost.
  if redis.call('HGET', job_key(args.id), 'dfl') ~= args.payload then return {'duplicate', 0, 0} end
  return {'queued', position_of(args.id, args.queue) or 0, 0}
end
-- The key's first job is the answer to all that follow, whatever has become of it.
if args.idempotency then
  local words = redis.call('GET', args.idempotency) or ''
  local digest, id = string.match(words, '^(%S+) (%S+)$')
  if id and redis.call('EXISTS', job_key(id)) == 1 then
    return {digest == args.digest and 'joined' or 'reused', id, 0}
  end
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
if args.start_within then
  redis.call('HSET', job_key(args.id), 'dfl_start_by', string.format('%.3f', now + args.start_within))
end
if args.end_wait_after then
  redis.call('ZADD', dfl .. ':waiting', now + args.end_wait_after, args.id)
end
if args.idempotency then
  redis.call('SET', args.idempotency, args.digest .. ' ' .. args.id, 'EX', args.index_ttl)
end
if args.index then
  redis.call('ZADD', args.index, now, args.id)
  redis.call('ZREMRANGEBYSCORE', args.index, '-inf', now - args.index_ttl)
  redis.call('EXPIRE', args.index, args.index_ttl)
end
redis.call('RPUSH', queue, args.id)
redis.call('SADD', rq .. ':queues', queue)
redis.call('PUBLISH', dfl .. ':wake:' .. args.queue, args.queue)
return {'queued', position_at(args.queue, length), 0}
