"""What the user types: click commands, one file a noun.

This file holds only the table of commands, and imports nothing: the first page of help is printed from
it without click, and a command's module is imported when it runs.
"""

# name: (section, module below kvmctl.cli, short help). A test compares the help with the command's own.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "create": (
        "Virtual machines",
        "create",
        "Make a VM from an image, an installer, a kernel, a disk or the network, and start it.",
    ),
    "apply": ("Virtual machines", "spec", "Make VMs be as a spec says: create those there are not, change the others."),
    "diff": ("Virtual machines", "spec", "Show what of VMs is not as a spec says; exit 0 same, 1 different."),
    "export": ("Virtual machines", "spec", "Print VMs as a spec that apply makes their like from."),
    "delete": (
        "Virtual machines",
        "delete",
        "Delete VMs, with what kvmctl made for them: disks, seed, NVRAM, TPM state, snapshots, ports.",
    ),
    "host": ("Host", "host", "Check and set up the host, and show what it gives."),
    "image": ("Images", "image", "Build, download, import and delete the images that guests are made from."),
    "list": ("Virtual machines", "listing", "List the VMs, running or not."),
    "ps": ("Virtual machines", "listing", "List the VMs that run (or are paused)."),
    "info": ("Virtual machines", "listing", "Show all there is to know of one VM."),
    "start": ("Virtual machines", "lifecycle", "Start VMs, or let saved ones run on."),
    "stop": ("Virtual machines", "lifecycle", "Ask guests to shut down, and wait until they are off."),
    "reboot": ("Virtual machines", "lifecycle", "Ask guests to reboot."),
    "reset": ("Virtual machines", "lifecycle", "Press the reset button: a reboot that does not ask the guest."),
    "destroy": ("Virtual machines", "lifecycle", "Power VMs off at once, without asking the guest."),
    "suspend": ("Virtual machines", "lifecycle", "Pause VMs: they keep their memory and use no CPU."),
    "resume": ("Virtual machines", "lifecycle", "Let paused VMs run on, or wake sleeping ones."),
    "clone": ("State and copies", "clone", "Copy a VM, running or not: linked (copy-on-write) unless --full."),
    "undo": ("State and copies", "undo", "Take back the last 'snapshot revert', 'set' or 'edit' of a VM."),
    "define": ("Virtual machines", "definition", "Define a VM from XML, or change the one it names."),
    "dumpxml": ("Virtual machines", "definition", "Print a VM's XML."),
    "edit": ("Virtual machines", "definition", "Edit a VM's XML in $VISUAL or $EDITOR."),
    "set": ("Virtual machines", "settings", "Change a VM's vCPUs, memory, title, description or autostart."),
    "exec": ("Inside the guest", "exec", "Run a command in a guest, through its agent."),
    "screenshot": ("Inside the guest", "screen", "Take a picture of a VM's screen."),
    "console": ("Inside the guest", "screen", "Join a VM's serial console; Ctrl-] leaves it."),
    "view": ("Inside the guest", "screen", "Open a VM's screen in virt-viewer, or say where it is."),
    "events": ("Virtual machines", "events", "Show what happens to VMs, as it happens."),
    "stats": ("Virtual machines", "stats", "Show what running VMs use: CPU, memory, disks, network."),
    "top": ("Virtual machines", "stats", "Watch what running VMs use, the busiest first."),
    "completion": ("Other", "completion", "Print the completion script for a shell."),
    "cp": ("Inside the guest", "guest", "Copy a file into a guest or out of it, through its agent."),
    "ssh": ("Inside the guest", "guest", "Log in to a guest with the ssh client, or run a command there."),
    "snapshot": (
        "State and copies",
        "snapshot",
        "Keep moments of a VM and go back to them: create, list, tree, show, revert, delete.",
    ),
    "migrate": (
        "State and copies",
        "migrate",
        "Move a VM to another host while it runs, with a pause of 30 ms or less.",
    ),
    "net": ("Networks", "net", "Make and manage networks: NAT, routed, isolated, open, bridge, macvtap."),
    "nic": ("Networks", "nic", "List, plug in and pull out a VM's network cards."),
    "disk": ("Devices", "disk", "List, plug in, pull out and grow a VM's disks, and change its CDs."),
    "pci": ("Devices", "pci", "List the host's PCI devices and pass them to VMs."),
    "wait": ("Virtual machines", "wait", "Wait until VMs are so far."),
    "save": ("Virtual machines", "saving", "Save running VMs' state to disk and stop them."),
    "restore": ("Virtual machines", "saving", "Let saved VMs run on."),
    "rename": ("Virtual machines", "marks", "Give a VM that is off another name."),
    "autostart": ("Virtual machines", "marks", "Let VMs start when their host does."),
    "protect": ("Virtual machines", "marks", "Protect VMs from kvmctl delete."),
    "unprotect": ("Virtual machines", "marks", "Let kvmctl delete remove VMs again."),
    "port": ("Networks", "port", "Publish ports of guests behind NAT or in user networking on the host."),
    "version": ("Other", "version", "Show the versions of kvmctl, libvirt and the hypervisor."),
}
ALIASES = {
    "ls": "list",
    "rm": "delete",
    "shutdown": "stop",
    "pause": "suspend",
}
