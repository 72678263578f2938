// The templates of one state directory, and their memory:
//
//   templates/NAME/template.json   what it is, and which of the following is its own
//   templates/NAME/ID/devices      the state of its devices
//   templates/NAME/ID/template.json   what the template was when that was made
//   templates/NAME/ID/memory       an image of its memory: after a restart of the host it is loaded
//   MEMORY_DIR/ID/ram              that memory, sealed, which clones map
//
// A template that is made anew gets another ID; what clones still have mapped of earlier ones stays
// until collect(). What is there without a template.json that names it was not finished.
//
// Blocking; any thread. For one template one call at a time that changes it: the caller's matter.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "container/template_record.h"

namespace berth::container {

class TemplateStore {
 public:
  TemplateStore(std::string state_dir, std::string memory_dir);

  /// By name. Those whose record cannot be read are left out, with a warning.
  std::vector<TemplateRecord> list() const;
  Result<TemplateRecord> find(const std::string& name) const;  // not_found
  /// What it was when it was made with this memory, which clones may still have; not_found.
  Result<TemplateRecord> making(const std::string& name, const Id128& id) const;

  /// Where one that is to have this memory object saves its devices. From now on the memory object
  /// goes with what is not finished.
  Result<std::string> begin(const std::string& name, const Id128& id) const;
  /// Of a memory object that is sealed and devices that are saved: writes the image, and the
  /// record. With that it is the template; durable. Fills in what is found of both.
  Result<TemplateRecord> finish(TemplateRecord record) const;
  /// The same where the image is written, and there is no memory object yet.
  Result<TemplateRecord> finish_image(TemplateRecord record) const;
  /// The memory object of a template; loaded from its image where it is gone, whose checksum has to
  /// be right (`corrupt`). `no_space` and `limit` as for a memory object.
  Result<std::string> memory(const TemplateRecord& record) const;
  std::string devices(const TemplateRecord& record) const;

  /// Removes what is no template's, and not `in_use` by clones: of the template of that name, or of
  /// all.
  Result<void> collect(const std::string& name, const std::set<Id128>& in_use) const;
  std::vector<std::string> names() const;
  Result<void> remove(const std::string& name) const;

  /// The checksum that its memory object has now.
  Result<std::string> checksum(const TemplateRecord& record) const;

 private:
  static Result<TemplateRecord> read(const std::string& name, const std::string& path);
  std::string directory(const std::string& name) const;
  std::string place(const std::string& name, const Id128& id) const;
  Result<TemplateRecord> record_made(TemplateRecord record, const std::string& memory) const;
  Result<void> remove_making(const std::string& name, const std::string& id) const;

  std::string state_dir_;
  std::string memory_dir_;
};

}  // namespace berth::container
