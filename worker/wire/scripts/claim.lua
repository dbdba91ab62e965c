#!lua flags=allow-oom
-- Pop and start in one: a crash can fall before or after it, never between.
local claims = {}
local lease_ttl = math.ceil(args.lease)
local MOST_LOOKED_AT = args.limit + 256

local function start(job, execution, payload)
  local key, member = job_key(job.id), job.id .. ':' .. execution
  leave(job) -- of an execution that rq's clean-up has taken away and left traces of
  job.execution = execution
  job.worker = args.worker
  fair.note_not_waiting(job)
  fair.hold_place(job)
  redis.call('HSET', key, 'status', 'started', 'started_at', args.iso, 'last_heartbeat', args.iso,
    'ended_at', '', 'worker_name', args.worker, 'dfl_execution', execution, 'dfl_started', now,
    'dfl_fingerprint', args.fingerprint)
  redis.call('HDEL', key, 'dfl_cancel', 'dfl_ending', 'dfl_ended_by')
  redis.call('EXPIRE', key, job.keep)
  redis.call('HSET', execution_key(job), 'id', execution, 'job_id', job.id,
    'created_at', now, 'last_heartbeat', now, 'worker_name', args.worker)
  redis.call('EXPIRE', execution_key(job), lease_ttl)
  redis.call('ZADD', rq .. ':executions:' .. job.id, now + args.lease + 60, execution)
  redis.call('EXPIRE', rq .. ':executions:' .. job.id, lease_ttl + 60)
  redis.call('ZADD', rq .. ':wip:' .. job.queue, now + args.lease, member)
  redis.call('SADD', rq .. ':worker:' .. args.worker .. ':executions', member)
  local attempt = redis.call('HINCRBY', key, 'dfl_attempt', 1)
  return {job.id, execution, job.queue, attempt, payload}
end

-- The rest of an answer fits only what the same weights, tokenizer and template have begun.
local function is_begun_by_another_kind(job)
  local begun_by = redis.call('HGET', job_key(job.id), 'dfl_fingerprint')
  return args.fingerprint ~= '' and begun_by and begun_by ~= args.fingerprint
    and redis.call('EXISTS', log_key(job.id)) == 1
end

-- The last turn served of each queue.
local turns = {}

local function try(id, queue)
  local job = read_job(id)
  if job.status ~= 'queued' then return end -- cancelled, forgotten, or queued twice and running
  local field = redis.call('HMGET', job_key(id), 'dfl', 'dfl_deadline', 'dfl_turn')
  if not field[1] then
    finish(job, failure(job, args.foreign))
  elseif field[2] and tonumber(field[2]) < now then
    finish(job, failure(job, args.expired))
  elseif is_begun_by_another_kind(job) then
    finish(job, failure(job, args.unlike))
  elseif fair.has_no_place(job) then
    fair.defer(job, field[2])
  else
    claims[#claims + 1] = start(job, args.execution .. '-' .. #claims, field[1])
    turns[queue] = math.max(turns[queue] or 0, tonumber(field[3] or 0))
  end
end

-- Queues that hold jobs, as far as is known, the most urgent first.
local open = {}
for index, queue in ipairs(args.queues) do open[index] = queue end

local function pop(queue)
  local id = redis.call('LPOP', rq .. ':queue:' .. queue)
  if id then return id, queue end
  for index, name in ipairs(open) do
    if name == queue then table.remove(open, index) end
  end
end

-- A queue that was passed over for long is overdue: of every so many places, it gets one.
local function passed_key(queue) return dfl .. ':passed:' .. queue end
local places_key = dfl .. ':places:' .. args.queues[1]

local function overdue_queues()
  local found = {}
  if args.overdue_s == 0 or #args.queues < 2 then return found end
  local keys = {}
  for index = 2, #args.queues do keys[index - 1] = passed_key(args.queues[index]) end
  for index, since in ipairs(redis.call('MGET', unpack(keys))) do
    if since and now - tonumber(since) > args.overdue_s then
      found[#found + 1] = args.queues[index + 1]
    end
  end
  return found
end

local overdue = overdue_queues()
local num_places = #overdue > 0 and tonumber(redis.call('GET', places_key) or 0)

local function next_job()
  if num_places then
    num_places = num_places + 1
    local round = num_places / args.overdue_every
    if round == math.floor(round) then
      local id, queue = pop(overdue[round % #overdue + 1])
      if id then return id, queue end
    end
  end
  while #open > 0 do
    local id, queue = pop(open[1])
    if id then return id, queue end
  end
end

local num_looked_at = 0
while #claims < args.limit and num_looked_at < MOST_LOOKED_AT do
  local id, queue = next_job()
  if not id then break end
  num_looked_at = num_looked_at + 1
  try(id, queue)
end

local function note_passed_over()
  local is_open, served = {}, {}
  for _, queue in ipairs(open) do is_open[queue] = true end
  for index, queue in ipairs(args.queues) do
    if not is_open[queue] then
      served[#served + 1] = passed_key(queue)
    elseif index > 1 and redis.call('EXISTS', rq .. ':queue:' .. queue) == 1 then
      redis.call('SET', passed_key(queue), now, 'NX', 'EX', 86400)
    end
  end
  if #served > 0 then redis.call('DEL', unpack(served)) end
  if num_places then redis.call('SET', places_key, num_places % 1e9, 'EX', 3600) end
end

if #claims > 0 then
  redis.call('EXPIRE', rq .. ':worker:' .. args.worker .. ':executions', lease_ttl + 60)
  for queue, turn in pairs(turns) do fair.note_served(queue, turn) end
  show_state(args.worker)
end
note_passed_over()
-- Enough looked at for one call; whoever has room looks again at once.
if #claims < args.limit and num_looked_at == MOST_LOOKED_AT then
  redis.call('PUBLISH', dfl .. ':wake:' .. args.queues[1], args.queues[1])
end
publish_frames()
return claims
