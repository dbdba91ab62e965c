#!lua flags=allow-oom
-- Take batches that nobody works on; each taking is an epoch, and only its taker may write.
local taken = {}
local open = dfl .. ':batches'
for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
  if #taken >= args.limit then break end
  local key = dfl .. ':batch:' .. id
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZREM', open, id)
  elseif tonumber(redis.call('HGET', key, 'lease') or 0) < now then
    redis.call('HSET', key, 'lease', now + args.lease)
    taken[#taken + 1] = {id, redis.call('HINCRBY', key, 'epoch', 1)}
  end
end
return taken
