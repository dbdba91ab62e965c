#!lua flags=no-writes
-- Every model known, with the seconds since a worker last offered it; and what live workers say.
local models, workers = {}, {}
local known = redis.call('ZRANGE', dfl .. ':models', 0, -1, 'WITHSCORES')
for index = 1, #known, 2 do
  local words = redis.call('GET', dfl .. ':model:' .. known[index])
  local silent_s = now - (tonumber(known[index + 1]) - args.model_ttl)
  if words then models[#models + 1] = {words, string.format('%.3f', silent_s)} end
end
for _, name in ipairs(redis.call('ZRANGE', dfl .. ':workers', 0, -1)) do
  local words = redis.call('GET', dfl .. ':worker:' .. name)
  if words then workers[#workers + 1] = words end
end
return {models, workers}
