#!lua flags=allow-oom
-- Say how far a batch is, and keep it; 0 if another has taken it, 2 if it is to be cancelled.
local key = dfl .. ':batch:' .. args.id
if redis.call('HGET', key, 'epoch') ~= tostring(args.epoch) then return 0 end
redis.call('HSET', key, 'state', args.state, 'lease', now + args.lease)
if args.is_over then
  redis.call('ZREM', dfl .. ':batches', args.id)
  redis.call('EXPIRE', key, args.keep)
end
return redis.call('HEXISTS', key, 'cancel') == 1 and 2 or 1
