#!lua flags=no-writes
local field = redis.call('HMGET', job_key(args.id),
  'status', 'origin', 'dfl_answer', 'dfl_ending')
if not field[1] then return {} end
local position = false
if field[1] == 'queued' then
  position = redis.call('LPOS', rq .. ':queue:' .. (field[2] or ''), args.id)
end
return {field[1], position, field[3], field[4]}
