#!lua flags=no-writes
-- The words of everybody in an index who still lives.
local words = {}
for _, name in ipairs(redis.call('ZRANGE', dfl .. ':' .. args.index, 0, -1)) do
  local value = redis.call('GET', dfl .. ':' .. args.kind .. ':' .. name)
  if value then words[#words + 1] = value end
end
return words
