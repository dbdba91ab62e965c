#!lua
-- Without allow-oom: at the memory limit new work is refused, and what is there goes on.
local queue = rq .. ':queue:' .. args.queue
if redis.call('EXISTS', job_key(args.id)) == 1 then
  -- The very same bytes: this command, sent again because its first reply got lost.
  if redis.call('HGET', job_key(args.id), 'dfl') ~= args.payload then return {'duplicate', 0, 0} end
  return {'queued', position_of(read_job(args.id)) or 0, 0}
end
-- The key's first job is the answer to all that follow, whatever has become of it.
if args.idempotency then
  local words = redis.call('GET', args.idempotency) or ''
  local digest, id = string.match(words, '^(%S+) (%S+)$')
  if id and redis.call('HEXISTS', job_key(id), 'dfl') == 1 then -- a deleted answer is none
    return {digest == args.digest and 'joined' or 'reused', id, 0}
  end
end

local function refusal(kind, count)
  -- Finished jobs are scored by when they are forgotten, so the top of the set is the last 10 s.
  local since = now - 10 + args.result_ttl
  return {kind, count, redis.call('ZCOUNT', rq .. ':finished:' .. args.queue, since, '+inf')}
end

local length = redis.call('LLEN', queue)
local num_waiting = length
if args.max_running > 0 then
  num_waiting = length + redis.call('ZCARD', rq .. ':deferred:' .. args.queue)
end
if num_waiting >= args.max_queue_size and not fair.may_exceed(args.queue, args.tenant) then
  return refusal('full', num_waiting)
end
if args.max_waiting > 0 then
  local num_own = fair.num_waiting(args.tenant, args.max_waiting)
  if num_own >= args.max_waiting then return refusal('full of own', num_own) end
  fair.note_waiting(args.tenant, args.id, args.timeout)
end
local turn = fair.turn_of(args.queue, args.tenant, args.cost, length)
redis.call('HSET', job_key(args.id), 'dfl', args.payload, 'dfl_turn', turn,
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
local num_before = fair.insert(queue, args.id, turn, length)
redis.call('SADD', rq .. ':queues', queue)
redis.call('PUBLISH', dfl .. ':wake:' .. args.queue, args.queue)
return {'queued', position_at(args.queue, num_before), 0}
