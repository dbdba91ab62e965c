#!lua flags=allow-oom
-- Pop and start in one: a crash can fall before or after it, never between.
local claims = {}
local lease_ttl = math.ceil(args.lease)
local MOST_LOOKED_AT = args.limit + 256

-- One that an operator has put back has no deadline any more, and gets its time anew.
local function time_left(job, deadline)
  if not deadline then
    deadline = string.format('%.3f', now + job.timeout)
    redis.call('HSET', job_key(job.id), 'dfl_deadline', deadline)
  end
  return string.format('%.3f', deadline - now)
end

local function start(job, execution, payload, deadline)
  local key, member = job_key(job.id), job.id .. ':' .. execution
  leave(job) -- of an execution that rq's clean-up has taken away and left traces of
  job.execution = execution
  job.worker = args.worker
  fair.note_not_waiting(job)
  fair.hold_place(job)
  redis.call('HSET', key, 'status', 'started', 'started_at', args.iso, 'last_heartbeat', args.iso,
    'ended_at', '', 'worker_name', args.worker, 'dfl_execution', execution, 'dfl_started', now,
    'dfl_fingerprint', args.fingerprint)
  redis.call('HDEL', key, 'dfl_cancel', 'dfl_ending', 'dfl_ended_by', 'dfl_start_by')
  redis.call('EXPIRE', key, job.keep)
  redis.call('HSET', execution_key(job), 'id', execution, 'job_id', job.id,
    'created_at', now, 'last_heartbeat', now, 'worker_name', args.worker)
  redis.call('EXPIRE', execution_key(job), lease_ttl)
  redis.call('ZADD', rq .. ':executions:' .. job.id, now + args.lease + 60, execution)
  redis.call('EXPIRE', rq .. ':executions:' .. job.id, lease_ttl + 60)
  redis.call('ZADD', rq .. ':wip:' .. job.queue, now + args.lease, member)
  redis.call('SADD', rq .. ':worker:' .. args.worker .. ':executions', member)
  local attempt = redis.call('HINCRBY', key, 'dfl_attempt', 1)
  return {job.id, execution, job.queue, attempt, payload, time_left(job, deadline)}
end

-- The rest of an answer fits only what the same weights, tokenizer and template have begun.
local function is_begun_by_another_kind(job, begun_by)
  return args.fingerprint ~= '' and begun_by and begun_by ~= args.fingerprint
    and redis.call('EXISTS', log_key(job.id)) == 1
end

-- A job that two workers have died with may be what kills them. Beside another such job it would
-- take that one's last attempt as well, so a worker has only one of them at a time.
local SUSPECT_AFTER = 2
local apart = {} -- suspects that have to wait, in order
local has_suspect

local function is_suspect(num_deaths)
  return tonumber(num_deaths or 0) >= SUSPECT_AFTER
end

local function holds_suspect()
  for _, member in ipairs(redis.call('SMEMBERS', rq .. ':worker:' .. args.worker .. ':executions')) do
    local id = split_member(member)
    if id and is_suspect(redis.call('HGET', job_key(id), 'dfl_deaths')) then return true end
  end
  return false
end

local function must_wait_apart(job, queue, num_deaths)
  if not is_suspect(num_deaths) then return false end
  if has_suspect == nil then has_suspect = holds_suspect() end
  if has_suspect then
    apart[#apart + 1] = {id = job.id, queue = queue}
    return true
  end
  has_suspect = true
  return false
end

local offers = {}
for _, name in ipairs(args.offers) do offers[name] = true end
offers[kind_of(args.fingerprint)] = true

-- What only another worker has, and all that it must have; nothing where this one will do.
local function needs_of(job, mode, begun_by)
  local kind = is_begun_by_another_kind(job, begun_by) and begun_by
  if not kind and (not mode or #args.offers == 0 or offers[mode]) then return end
  local needs = {mode or nil}
  if kind then needs[#needs + 1] = kind_of(kind) end
  return table.concat(needs, '.'), kind
end

-- The last turn served of each queue.
local turns = {}

local function try(id, queue)
  local job = read_job(id)
  if job.status ~= 'queued' then return end -- cancelled, forgotten, or queued twice and running
  local field = redis.call('HMGET', job_key(id), 'dfl', 'dfl_deadline', 'dfl_start_by',
    'dfl_turn', 'dfl_mode', 'dfl_fingerprint', 'dfl_deaths')
  local needs, kind = needs_of(job, field[5], field[6])
  if not field[1] then
    finish(job, failure(job, args.foreign))
  elseif field[2] and tonumber(field[2]) < now then
    finish(job, failure(job, args.expired))
  elseif field[3] and tonumber(field[3]) < now then
    finish(job, failure(job, args.overdue))
  elseif needs and route.is_offered(needs) then
    route.pass_on(job, needs)
  elseif needs then
    finish(job, failure(job, kind and args.unlike or args.lacking))
  elseif fair.has_no_place(job) then
    fair.defer(job, field[2])
  elseif not must_wait_apart(job, queue, field[7]) then
    claims[#claims + 1] = start(job, args.execution .. '-' .. #claims, field[1], field[2])
    local base = urgency.base_of(queue)
    turns[base] = math.max(turns[base] or 0, tonumber(field[4] or 0))
  end
end

urgency.open(route.queues_for(offers))
local num_looked_at = 0
while #claims < args.limit and num_looked_at < MOST_LOOKED_AT do
  local id, queue = urgency.next_job()
  if not id then break end
  num_looked_at = num_looked_at + 1
  try(id, queue)
end
for index = #apart, 1, -1 do
  redis.call('LPUSH', rq .. ':queue:' .. apart[index].queue, apart[index].id)
end
if #claims > 0 then
  redis.call('EXPIRE', rq .. ':worker:' .. args.worker .. ':executions', lease_ttl + 60)
  for queue, turn in pairs(turns) do fair.note_served(queue, turn) end
  show_state(args.worker)
end
urgency.note_passed_over()
-- Enough looked at for one call; whoever has room looks again at once.
if #claims < args.limit and num_looked_at == MOST_LOOKED_AT then
  redis.call('PUBLISH', dfl .. ':wake:' .. args.queues[1], args.queues[1])
end
publish_frames()
return claims
