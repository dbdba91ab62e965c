#!lua
-- Without allow-oom: at the memory limit new work is refused, and what is there goes on.
local queue = rq .. ':queue:' .. args.queue
if redis.call('EXISTS', job_key(args.id)) == 1 then
  -- The very same bytes: this command, sent again because its first reply got lost.
  if redis.call('HGET', job_key(args.id), 'dfl') ~= args.payload then return {'duplicate', 0, 0} end
  return {'queued', redis.call('LPOS', queue, args.id) or 0, 0}
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
if num_waiting >= args.max_queue_size then return refusal('full', num_waiting) end
if args.max_waiting > 0 then
  local num_own = fair.num_waiting(args.tenant, args.max_waiting)
  if num_own >= args.max_waiting then return refusal('full of own', num_own) end
  fair.note_waiting(args.tenant, args.id, args.timeout)
end
local turn = fair.turn_of(args.queue, args.tenant, args.cost, length)
redis.call('HSET', job_key(args.id), 'dfl', args.payload, 'dfl_turn', turn,
  'dfl_deadline', string.format('%.3f', now + args.timeout), unpack(args.fields))
redis.call('EXPIRE', job_key(args.id), args.keep)
local num_before = fair.insert(queue, args.id, turn, length)
redis.call('SADD', rq .. ':queues', queue)
redis.call('PUBLISH', dfl .. ':wake:' .. args.queue, args.queue)
return {'queued', num_before, 0}
