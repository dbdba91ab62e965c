#!lua
-- Make a batch, unless it is there; returns the digest of the request that has made it before.
local key = dfl .. ':batch:' .. args.id
local known = redis.call('HGET', key, 'digest')
if known then return known end
redis.call('HSET', key, 'spec', args.spec, 'state', args.state, 'digest', args.digest)
-- A batch that nobody ends is forgotten long after it should have.
redis.call('EXPIRE', key, args.keep)
for _, index in ipairs({dfl .. ':batches', args.index}) do
  redis.call('ZADD', index, now, args.id)
  redis.call('EXPIRE', index, args.keep)
end
return false
