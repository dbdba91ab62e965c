#!lua flags=allow-oom
-- Pages are written, counted and thrown out in one, so that the cap holds for all workers together.
-- It may run out of memory only to free some: no page is written above a share of maxmemory.
local index, total_key = dfl .. ':kv', dfl .. ':kv:bytes'
local total = tonumber(redis.call('GET', total_key) or '')
local memory = redis.call('INFO', 'memory')
local limit = tonumber(string.match(memory, 'maxmemory:(%d+)'))
local used = tonumber(string.match(memory, 'used_memory:(%d+)'))
local room = limit > 0 and limit * args.share - used or math.huge

-- A member is `<bytes>:<namespace>:<digest>`, its score the time when it expires.
local function parts(member)
  local size, name = string.match(member, '^(%d+):(.+)$')
  return tonumber(size), name
end

if not total then -- the first page, or somebody has deleted the count
  total = 0
  for _, member in ipairs(redis.call('ZRANGE', index, 0, -1)) do total = total + parts(member) end
end

local function remove(member)
  local size, name = parts(member)
  -- One that has expired has given its memory back already.
  if redis.call('DEL', dfl .. ':kv:' .. name) == 1 then room = room + size end
  total = total - size
end

local function remove_oldest()
  local oldest = redis.call('ZPOPMIN', index)
  if oldest[1] then remove(oldest[1]) end
  return oldest[1]
end

local function fits(size)
  return total + size <= args.cap and size <= room
end

local function write(digest, content)
  local name = args.namespace .. ':' .. digest
  redis.call('SET', dfl .. ':kv:' .. name, content, 'EX', args.ttl)
  if redis.call('ZADD', index, now + args.ttl, #content .. ':' .. name) == 1 then
    total = total + #content
  end
  room = room - #content
end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 1000)) do
  redis.call('ZREM', index, member)
  remove(member)
end
while not fits(0) and remove_oldest() do end
local num_written = 0
for i, digest in ipairs(args.digests) do
  local content = ARGV[i + 1]
  if #content > args.cap then break end
  while not fits(#content) and remove_oldest() do end
  if not fits(#content) then break end
  write(digest, content)
  num_written = num_written + 1
end
if redis.call('EXISTS', index) == 1 then
  redis.call('SET', total_key, string.format('%.0f', total), 'KEEPTTL')
  keep_at_least(index, args.ttl + 60)
  keep_at_least(total_key, args.ttl + 60)
else
  redis.call('DEL', total_key)
end
return num_written
