#!lua
-- Make a batch, unless it is there; returns whether it was not.
local key = dfl .. ':batch:' .. args.id
if redis.call('EXISTS', key) == 1 then return 0 end
redis.call('HSET', key, 'spec', args.spec, 'state', args.state, 'digest', args.digest)
-- A batch that nobody ends is forgotten long after it should have.
redis.call('EXPIRE', key, args.keep)
for _, index in ipairs({dfl .. ':batches', args.index}) do
  redis.call('ZADD', index, now, args.id)
  redis.call('EXPIRE', index, args.keep)
end
return 1
