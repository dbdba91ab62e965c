#!lua flags=allow-oom
-- Let one more API process hear of a job; returns the request and how its answer is written.
local field = redis.call('HMGET', job_key(args.id), 'dfl_tenant', 'dfl_api', 'dfl',
  'dfl_job')
if not field[3] or field[1] ~= args.tenant then return false end
local listeners = {args.api}
for api in string.gmatch(field[2] or '', '[^,]+') do
  -- Who has died stays listed, and nobody hears what is sent there; a few are enough.
  if api ~= args.api and #listeners < 8 then listeners[#listeners + 1] = api end
end
redis.call('HSET', job_key(args.id), 'dfl_api', table.concat(listeners, ','))
return {field[3], field[4]}
