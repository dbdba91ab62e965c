#!lua flags=allow-oom
-- How many leading pages are there. They live on as if they had just been written.
local count = 0
for _, digest in ipairs(args.digests) do
  local name = args.namespace .. ':' .. digest
  if redis.call('EXPIRE', dfl .. ':kv:' .. name, args.ttl) == 0 then break end
  redis.call('ZADD', dfl .. ':kv', 'XX', now + args.ttl, args.page_bytes .. ':' .. name)
  count = count + 1
end
return count
