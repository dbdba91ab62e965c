#!lua flags=no-writes
-- Ids of a tenant's jobs that are still known, the newest first, after the one named.
local first = 0
if args.after then
  local rank = redis.call('ZREVRANK', args.index, args.after)
  if not rank then return false end
  first = rank + 1
end
local ids = {}
for _, id in ipairs(redis.call('ZREVRANGE', args.index, first, first + 1000)) do
  if #ids > args.limit then break end
  if redis.call('EXISTS', job_key(id)) == 1 then ids[#ids + 1] = id end
end
return ids
