#!lua flags=allow-oom
-- One step: the log first, then the frames, so that no client has seen what the log does not hold.
local lost = {}

-- Redis refuses an id that is not above the last one. Only the holder writes here, so that is this
-- very step, sent again because its first reply got lost.
local function log(job, last_index, deltas)
  local key = log_key(job.id)
  local entry = '\145' .. array_of(deltas)
  local reply = redis.pcall('XADD', key, string.format('%d-0', last_index + 1), 'd', entry)
  if type(reply) == 'table' and reply.err then return false end
  redis.call('EXPIRE', key, job.keep, 'NX')
  return true
end

local function write(job, record)
  if record.answer then
    redis.call('HSET', job_key(job.id), 'dfl_answer', record.answer)
    say(job.api, record.answer)
  end
  if #record.deltas > 0 and log(job, record.last_index, record.deltas) then
    for _, delta in ipairs(record.deltas) do say(job.api, delta) end
  end
  if record.ending then finish(job, record.ending) end
end

-- Ended by this very execution: the step was sent again. Nothing is lost, nothing is left to do.
local function ended_before(job, record)
  return record.ending
    and redis.call('HGET', job_key(job.id), 'dfl_ended_by') == record.execution
end

-- RQ's Job.cancel has ended it already: only the client and the traces of the execution are left.
local function canceled_by_rq(job, record)
  return record.ending and job.status == 'canceled' and job.execution == record.execution
end

for _, record in ipairs(args.jobs) do
  local job = read_job(record.id)
  if holds(job, record.execution) then
    write(job, record)
  elseif canceled_by_rq(job, record) then
    record.ending.status = 'canceled'
    finish(job, record.ending)
  elseif not ended_before(job, record) then
    lost[#lost + 1] = job.id
  end
end
publish_frames()
if args.has_endings then show_state(args.worker) end
return lost
