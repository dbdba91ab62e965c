#!lua flags=allow-oom
-- One step: the log first, then the frames, so that no client has seen what the log does not hold.
local lost, behind = {}, {}

-- Redis refuses an id that is not above the last one. Only the holder writes here, so that is this
-- very step, sent again because its first reply got lost.
local function log(job, record)
  local key = log_key(job.id)
  local entry = '\145' .. array_head(record.count) .. record.deltas
  local reply = redis.pcall('XADD', key, record.log_id, 'd', entry)
  if type(reply) == 'table' and reply.err then return false end
  if job.keep then redis.call('EXPIRE', key, job.keep) end
  return true
end

-- A server that has crashed, or a replica that took over, may have forgotten the log's end. What
-- follows must not be written after a hole: the worker is told where the log ends now.
local function has_forgotten(job, record)
  if record.num_entries == 0 then return false end
  local num_entries = redis.call('XLEN', log_key(job.id))
  if num_entries >= record.num_entries then return false end
  local last = redis.call('XREVRANGE', log_key(job.id), '+', '-', 'COUNT', 1)[1]
  local next_index = last and tonumber(string.match(last[1], '^%d+')) or 0
  behind[#behind + 1] = {job.id, num_entries, next_index}
  return true
end

local function write(job, record)
  if has_forgotten(job, record) then return end
  if record.answer then
    redis.call('HSET', job_key(job.id), 'dfl_answer', record.answer)
    say(job.api, record.answer, 1)
  end
  if record.count > 0 and log(job, record) then say(job.api, record.deltas, record.count) end
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

-- Nearly every record is one more delta: then the fence and the address are all that is needed.
local function glance(id)
  local field = redis.call('HMGET', job_key(id), 'status', 'dfl_execution', 'dfl_api')
  return {id = id, status = field[1], execution = field[2], api = field[3]}
end

-- As arrays, because a step holds a record for every sequence and names cost time.
local function unpack_record(row)
  return {
    id = row[1], execution = row[2], is_first = row[3], log_id = row[4], count = row[5],
    deltas = row[6], answer = row[7], ending = row[8], num_entries = row[9],
  }
end

for _, row in ipairs(args.jobs) do
  local record = unpack_record(row)
  local job = (record.ending or record.is_first) and read_job(record.id) or glance(record.id)
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
return {lost, behind}
