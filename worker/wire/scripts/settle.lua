#!lua flags=allow-oom
-- Note how a webhook's delivery went; without a next time it is over.
local key = job_key(args.id)
local field = redis.call('HMGET', key, 'dfl_hook_event', 'dfl_hook_attempt')
-- Another sender has it by now, or the job has run and ended again.
if field[1] ~= args.event or tonumber(field[2] or 0) ~= args.attempt then return 0 end
redis.call('HSET', key, 'dfl_hook_state', args.state, 'dfl_hook_words', args.words)
if args.again_in then
  redis.call('ZADD', dfl .. ':webhooks', now + args.again_in, args.id)
else
  redis.call('ZREM', dfl .. ':webhooks', args.id)
end
return 1
