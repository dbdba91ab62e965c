#!lua flags=no-writes
local field = redis.call('HMGET', job_key(args.id),
  'status', 'origin', 'dfl_answer', 'dfl_ending', 'dfl_tenant')
if not field[1] then return {} end
local position = false
if field[1] == 'queued' or field[1] == 'deferred' then
  position = fair.num_before(args.id, field[2] or '', field[1], field[5])
end
return {field[1], position, field[3], field[4]}
