#!lua flags=allow-oom
-- A worker is known to be dead: take back its jobs now, and take it off RQ's lists.
local requeued, failed = {}, {}
local worker = rq .. ':worker:' .. args.dead
local members = redis.call('SMEMBERS', worker .. ':executions')
table.sort(members, function(a, b) return a > b end)

for _, member in ipairs(members) do
  local id, execution = split_member(member)
  local job = id and read_job(id)
  if job and holds(job, execution) then bury(job, requeued, failed) end
end
for queue in string.gmatch(redis.call('HGET', worker, 'queues') or '', '[^,]+') do
  redis.call('SREM', rq .. ':workers:' .. queue, worker)
end
redis.call('SREM', rq .. ':workers', worker)
redis.call('ZREM', dfl .. ':workers', args.dead)
redis.call('DEL', worker, worker .. ':executions', dfl .. ':worker:' .. args.dead)
publish_frames()
return {requeued, failed}
